// Pointwise correlations (1x1, stride 1, no padding) in channels_last: a matrix product for each group, straight from
// the source's pixels to the destination's. The lanes of a vector are destination channels, which lie together, and a
// source channel of a pixel is a broadcast: nothing is transposed, as it is on the way to planes and back.
namespace fastconv::grouped_conv2d::FASTCONV_ISA {

// A tile: kTileRows runs of kTileColumns pixels times one or two vectors of channels. As sums, those of two vectors
// take 28 of 32 registers, or 12 of 16.
inline constexpr int kTileRows = 2, kTileColumns = FASTCONV_VECTOR_BYTES == 64 ? 7 : 3;

// `step`: from pixel to pixel; `source_step`: from source channel to source channel.
template <class acc_t, int kVecs>
FASTCONV_INLINE void pointwise_tile(const acc_t* pixels, int64_t step, int64_t sources, int64_t source_step,
                                    const acc_t* weights, acc_t* sums) {
  constexpr int lanes = kLanes<acc_t>;
  Vec<acc_t> acc[kTileRows][kTileColumns][kVecs] = {};
  const acc_t* rows[kTileRows];
  for (int r = 0; r < kTileRows; ++r) rows[r] = pixels + r * kTileColumns * step;
  const int64_t step3 = 3 * step, step5 = 5 * step;
  for (int64_t s = 0; s < sources; ++s, weights += kVecs * lanes) {
    Vec<acc_t> w[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      w[v] = load(weights + v * lanes);
      keep_in_register(w[v]);
    }
    for (int r = 0; r < kTileRows; ++r) {
      const acc_t* row = rows[r];
      hide_origin(row);  // so that addresses are sums of few registers
#pragma GCC unroll 7
      for (int i = 0; i < kTileColumns; ++i) {
        const int64_t at = i == 3 ? step3 : i == 5 ? step5 : i == 6 ? 2 * step3 : i * step;
        const Vec<acc_t> x = broadcast(row[at]);
        for (int v = 0; v < kVecs; ++v) acc[r][i][v] += w[v] * x;
      }
      rows[r] = row + source_step;
    }
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int i = 0; i < kTileColumns; ++i)
      for (int v = 0; v < kVecs; ++v) store(sums + ((r * kTileColumns + i) * kVecs + v) * lanes, acc[r][i][v]);
}

// ---- weights: [group][block of up to two vectors of destinations][source][lane], zeros past the last destination

template <class acc_t>
inline int64_t padded_destinations(const Correlation& c) {
  return (c.destinations + kLanes<acc_t> - 1) / kLanes<acc_t> * kLanes<acc_t>;
}

template <class scalar_t>
void pack_pointwise_weights_of(const Correlation& c, acc_type<scalar_t>* packed, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const int64_t padded = padded_destinations<acc_t>(c);
  for (int64_t g = begin; g < end; ++g) {
    const scalar_t* weight = static_cast<const scalar_t*>(c.params->weight) + g * c.sources * c.destinations;
    acc_t* group = packed + g * c.sources * padded;
    for (int64_t d0 = 0; d0 < padded; d0 += 2 * lanes) {
      const int64_t width = padded - d0 < 2 * lanes ? lanes : 2 * lanes;
      for (int64_t s = 0; s < c.sources; ++s, group += width)
        for (int64_t d = 0; d < width; ++d)
          group[d] = d0 + d < c.destinations
                         ? to_float(weight[s * c.weight_source_stride + (d0 + d) * c.weight_destination_stride])
                         : acc_t(0);
    }
  }
}

// ---- one item: a block of a tile's pixels, counted through all images

template <class scalar_t>
void pointwise_of(const Correlation& c, const acc_type<scalar_t>* packed, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  constexpr int64_t block = kTileRows * kTileColumns;
  const Params& p = *c.params;
  const FeatureMap &source = c.source, &destination = c.destination;
  const int64_t width = p.width, image = p.height * width, pixels = p.batch * image;
  const int64_t source_channels = p.groups * c.sources, channels = p.groups * c.destinations;
  const int64_t padded = padded_destinations<acc_t>(c);
  const bool shuffled = c.destination_order.shuffle > 1;
  // A pixel's channels of a group, one after the other: the shuffle of ShuffleNet puts them `groups` apart.
  const bool even_steps = c.source_order.shuffle == 1 || c.source_order.shuffle == p.groups;
  const bool dense = source.stride_h == width * source.stride_w && source.stride_n == image * source.stride_w;
  const bool direct = std::is_same_v<scalar_t, acc_t> && dense && even_steps;
  acc_t *gathered, *sums, *biases;
  int64_t *source_positions, *positions;
  const auto cut = [&](ScratchLayout layout) {
    gathered = layout.take<acc_t>(block * source_channels);
    sums = layout.take<acc_t>(block * 2 * lanes);
    biases = layout.take<acc_t>(p.groups * padded + lanes);
    source_positions = layout.take<int64_t>(source_channels);
    positions = layout.take<int64_t>(channels);
    return layout.bytes();
  };
  cut(ScratchLayout(thread_scratch(cut(ScratchLayout()))));
  for (int64_t i = 0; i < source_channels; ++i) source_positions[i] = c.source_order.position(i);
  for (int64_t i = 0; i < channels; ++i) positions[i] = c.destination_order.position(i);
  for (int64_t i = 0; i < p.groups * padded; ++i) {
    const int64_t d = i % padded;
    biases[i] = c.bias == nullptr || d >= c.destinations
                    ? acc_t(0)
                    : to_float(static_cast<const scalar_t*>(c.bias)[i / padded * c.destinations + d]);
  }
  const auto source_pixel = [&](int64_t i) {
    return static_cast<const scalar_t*>(source.data) + i / image * source.stride_n +
           i % image / width * source.stride_h + i % width * source.stride_w;
  };

  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * block, count = pixels - first < block ? pixels - first : block;
    const acc_t* from = gathered;
    int64_t step = source_channels, group_step = c.sources, source_step = 1;
    if (direct && count == block) {
      if constexpr (std::is_same_v<scalar_t, acc_t>) from = source_pixel(first);
      step = source.stride_w;
      if (c.source_order.shuffle > 1) group_step = 1, source_step = p.groups;
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const scalar_t* pixel = source_pixel(first + i);
        acc_t* target = gathered + i * source_channels;
        if (c.source_order.shuffle == 1) {
          int64_t s = 0;
          for (; s + lanes <= source_channels; s += lanes) store(target + s, load(pixel + s));
          for (; s < source_channels; ++s) target[s] = to_float(pixel[s]);
        } else {
          for (int64_t s = 0; s < source_channels; ++s) target[s] = to_float(pixel[source_positions[s]]);
        }
      }
    }
    // The destination is dense.
    scalar_t* target = static_cast<scalar_t*>(destination.data) + first * channels;
    for (int64_t g = 0; g < p.groups; ++g) {
      const acc_t* weights = packed + g * c.sources * padded;
      for (int64_t d = 0; d < c.destinations; d += 2 * lanes) {
        const int64_t left = c.destinations - d;
        const int vecs = left > lanes ? 2 : 1;
        if (vecs == 2) {
          pointwise_tile<acc_t, 2>(from + g * group_step, step, c.sources, source_step, weights, sums);
        } else {
          pointwise_tile<acc_t, 1>(from + g * group_step, step, c.sources, source_step, weights, sums);
        }
        weights += c.sources * vecs * lanes;
        for (int v = 0; v < vecs; ++v) {
          const int64_t at = d + v * lanes, here = left - v * lanes < lanes ? left - v * lanes : lanes;
          const Vec<acc_t> bias = load(biases + g * padded + at);
          for (int64_t i = 0; i < count; ++i) {
            Vec<acc_t> sum = load(sums + (i * vecs + v) * lanes) + bias;
            if (c.activation != Activation::none) sum = activate<acc_t>(sum, c.activation);
            if (!shuffled) {
              store_first(target + i * channels + g * c.destinations + at, sum, here);
            } else {
              scalar_t values[lanes];
              store(values, sum);
              const int64_t* place = positions + g * c.destinations + at;
              for (int64_t j = 0; j < here; ++j) target[i * channels + place[j]] = values[j];
            }
          }
        }
      }
    }
  }
}

}  // namespace fastconv::grouped_conv2d::FASTCONV_ISA
