// The weight gradient: for each destination channel of a group, source channel and tap, the dot product of two planes,
// the gradient's and the source's moved by the tap. A register tile holds kOuts gradients times kStreams (source
// channel, tap) pairs.
namespace fastconv::grouped_conv2d::FASTCONV_ISA {

// kOuts times kStreams sums: as many as there are lanes in a vector of 64 bytes, which are then summed at once.
inline constexpr int kStreams = FASTCONV_VECTOR_BYTES == 64 ? 4 : 2;

// Sums over `images` images of `vectors` vectors each; sums[o * sums_pitch + stream] is added to for the first `count`
// streams.
template <class acc_t, int kTileOuts>
FASTCONV_INLINE void dot_tile(const acc_t* grads, int64_t grad_plane, int64_t grad_image, const acc_t* sources,
                              const int64_t* streams, int64_t source_image, int64_t images, int64_t vectors,
                              acc_t* sums, int64_t sums_pitch, int64_t count) {
  constexpr int lanes = kLanes<acc_t>;
  Vec<acc_t> acc[kTileOuts * kStreams] = {};
  for (int64_t n = 0; n < images; ++n, grads += grad_image, sources += source_image) {
    const acc_t* pixels[kStreams];
    for (int i = 0; i < kStreams; ++i) pixels[i] = sources + streams[i];
    for (int64_t j = 0; j < vectors * lanes; j += lanes) {
      Vec<acc_t> g[kTileOuts];
      for (int o = 0; o < kTileOuts; ++o) {
        g[o] = load(grads + o * grad_plane + j);
        keep_in_register(g[o]);
      }
      for (int i = 0; i < kStreams; ++i) {
        Vec<acc_t> v = load(pixels[i] + j);
        keep_in_register(v);
        for (int o = 0; o < kTileOuts; ++o) acc[o * kStreams + i] += g[o] * v;
      }
    }
  }
  acc_t totals[kTileOuts * kStreams];
  sum_lanes_of_each<acc_t>(acc, kTileOuts * kStreams, totals);
  for (int o = 0; o < kTileOuts; ++o)
    for (int64_t i = 0; i < count; ++i) sums[o * sums_pitch + i] += totals[o * kStreams + i];
}

// `streams` is filled up to a multiple of kStreams.
template <class acc_t, int kTileOuts>
inline void dot_tiles(const acc_t* grads, int64_t grad_plane, int64_t grad_image, const acc_t* sources,
                      const int64_t* streams, int64_t stream_count, int64_t source_image, int64_t images,
                      int64_t vectors, acc_t* sums) {
  for (int64_t i = 0; i < stream_count; i += kStreams) {
    const int64_t count = stream_count - i < kStreams ? stream_count - i : kStreams;
    dot_tile<acc_t, kTileOuts>(grads, grad_plane, grad_image, sources, streams + i, source_image, images, vectors,
                               sums + i, stream_count, count);
  }
}

template <class acc_t>
__attribute__((noinline)) void weight_grad_group(const acc_t* grads, int64_t grad_plane, int64_t grad_image,
                                                 int64_t destinations, const acc_t* sources, const int64_t* streams,
                                                 int64_t stream_count, int64_t source_image, int64_t images,
                                                 int64_t vectors, acc_t* sums) {
  int64_t d = 0;
  for (; d + kOuts <= destinations; d += kOuts, grads += kOuts * grad_plane, sums += kOuts * stream_count)
    dot_tiles<acc_t, kOuts>(grads, grad_plane, grad_image, sources, streams, stream_count, source_image, images,
                            vectors, sums);
  for (; d + 2 <= destinations; d += 2, grads += 2 * grad_plane, sums += 2 * stream_count)
    dot_tiles<acc_t, 2>(grads, grad_plane, grad_image, sources, streams, stream_count, source_image, images, vectors,
                        sums);
  if (d < destinations)
    dot_tiles<acc_t, 1>(grads, grad_plane, grad_image, sources, streams, stream_count, source_image, images, vectors,
                        sums);
}

// The formats of both maps for strips of `rows` output rows: the gradient has the source's pitch, with zeros between
// its rows, so that what the columns between the rows hold does not count.
template <class acc_t>
struct WeightGradFormat {
  PlaneFormat source, grad;

  WeightGradFormat(const Params& p, int64_t rows) {
    const auto count = [](int64_t outputs, int64_t kernel, int64_t stride, int64_t dilation) {
      return outputs + (kernel - 1) * dilation / stride;
    };
    source = plane_format<acc_t>(
        {p.stride_h, p.padding_h, p.height, count(rows, p.kernel_h, p.stride_h, p.dilation_h)},
        {p.stride_w, p.padding_w, p.width, count(p.out_width, p.kernel_w, p.stride_w, p.dilation_w)});
    grad = plane_format<acc_t>({1, 0, p.out_height, rows}, {1, 0, p.out_width, source.x.count});
  }
};

template <class scalar_t>
void weight_grad_of(const Params& p, WeightGradSplit split, acc_type<scalar_t>* partial_sums, int64_t begin,
                    int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const int64_t sources = p.group_channels(), destinations = p.group_out_channels();
  const int64_t stream_count = sources * p.kernel_h * p.kernel_w, sums_count = p.out_channels * stream_count;
  const int64_t batch_part = (p.batch + split.parts - 1) / split.parts;

  // As many whole images as stay in the second-level cache, or a strip of one.
  const auto bytes_of = [&](const WeightGradFormat<acc_t>& f) {
    return split.groups * (sources * f.source.plane + destinations * f.grad.plane) * int64_t(sizeof(acc_t));
  };
  int64_t rows = p.out_height;
  while (rows > 4 && bytes_of(WeightGradFormat<acc_t>(p, rows)) > kScratchBytes) rows = (rows + 1) / 2;
  const WeightGradFormat<acc_t> format(p, rows);
  int64_t together = rows < p.out_height ? 1 : kScratchBytes / bytes_of(format);
  together = together < 1 ? 1 : together > batch_part ? batch_part : together;
  const int64_t source_image = split.groups * sources * format.source.plane;
  const int64_t grad_image = split.groups * destinations * format.grad.plane;

  acc_t *source_planes, *grad_planes;
  int64_t *streams, *source_offsets, *grad_offsets;
  const auto cut = [&](ScratchLayout layout) {
    source_planes = layout.take<acc_t>(together * source_image + kOverrun<acc_t>);
    grad_planes = layout.take<acc_t>(together * grad_image + kOverrun<acc_t>);
    streams = layout.take<int64_t>(stream_count + kStreams);
    source_offsets = layout.take<int64_t>(split.groups * sources);
    grad_offsets = layout.take<int64_t>(split.groups * destinations);
    return layout.bytes();
  };
  cut(ScratchLayout(thread_scratch(cut(ScratchLayout()))));
  for (int64_t s = 0, i = 0; s < sources; ++s)
    for (int64_t ky = 0; ky < p.kernel_h; ++ky)
      for (int64_t kx = 0; kx < p.kernel_w; ++kx)
        streams[i++] = s * format.source.plane + format.source.offset(ky * p.dilation_h, kx * p.dilation_w);
  for (int64_t i = stream_count; i < stream_count + kStreams; ++i) streams[i] = streams[0];
  // What lies between the end of a gradient's plane and its last vector, and what the source's vectors run over there,
  // must be finite.
  zero(source_planes, together * source_image + kOverrun<acc_t>);
  zero(grad_planes, together * grad_image + kOverrun<acc_t>);

  const bool nchw = p.layout == Layout::nchw;
  const ChannelOrder plain{1, p.channels}, shuffled{p.shuffle, p.out_channels / p.shuffle};
  for (int64_t i = 0; i < split.groups * sources; ++i) source_offsets[i] = i * format.source.plane;
  for (int64_t i = 0; i < split.groups * destinations; ++i) grad_offsets[i] = shuffled.channel(i) * format.grad.plane;
  const int64_t blocks = (p.groups + split.groups - 1) / split.groups;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item / blocks, g0 = item % blocks * split.groups;
    const int64_t groups = p.groups - g0 < split.groups ? p.groups - g0 : split.groups;
    const int64_t n_end = (part + 1) * batch_part < p.batch ? (part + 1) * batch_part : p.batch;
    acc_t* sums = partial_sums + part * sums_count + g0 * destinations * stream_count;
    fill_zero(sums, sums + groups * destinations * stream_count);
    for (int64_t n = part * batch_part; n < n_end; n += together)
      for (int64_t r0 = 0; r0 < p.out_height; r0 += rows) {
        const int64_t images = n_end - n < together ? n_end - n : together;
        for (int64_t i = 0; i < images; ++i) {
          pack_planes<scalar_t>(p.input, nchw, plain, n + i, g0 * sources, groups * sources, format.source, r0,
                                source_offsets, source_planes + i * source_image);
          pack_planes<scalar_t>(p.output, nchw, shuffled, n + i, g0 * destinations, groups * destinations, format.grad,
                                r0, grad_offsets, grad_planes + i * grad_image);
        }
        const int64_t left = p.out_height - r0, here = left < rows ? left : rows;
        const int64_t pixels = (here - 1) * format.grad.x.count + p.out_width;
        for (int64_t g = 0; g < groups; ++g)
          weight_grad_group<acc_t>(grad_planes + g * destinations * format.grad.plane, format.grad.plane, grad_image,
                                   destinations, source_planes + g * sources * format.source.plane, streams,
                                   stream_count, source_image, images, (pixels + lanes - 1) / lanes,
                                   sums + g * destinations * stream_count);
      }
  }
}

}  // namespace fastconv::grouped_conv2d::FASTCONV_ISA
