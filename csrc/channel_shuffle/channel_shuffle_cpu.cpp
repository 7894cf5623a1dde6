#include "channel_shuffle/channel_shuffle_cpu.h"

#include <algorithm>

#include "channel_shuffle/channel_shuffle_host.h"
#include "common/cpu.h"

namespace fastconv::channel_shuffle {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (cpu_isa() == Isa::avx512) return avx512::kKernels;
  if (cpu_isa() == Isa::avx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

// The part that has channel s of all parts, or -1 if it is not of this pass.
int part_of(const Params& p, int64_t s) {
  for (int i = 0; i < p.num_parts; ++i)
    if (s >= p.parts[i].first && s < p.parts[i].first + p.parts[i].channels) return i;
  return -1;
}

// Rows end where one of their streams goes from part to part.
std::vector<Piece> make_pieces(const Params& p) {
  const int64_t rows = p.group_channels();
  std::vector<int64_t> ends{0, rows};
  for (int i = 0; i < p.num_parts; ++i)
    for (int64_t s : {p.parts[i].first, p.parts[i].first + p.parts[i].channels}) ends.push_back(s % rows);
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  std::vector<Piece> pieces;
  for (size_t e = 0; e + 1 < ends.size(); ++e)
    for (int64_t j = 0; j < p.groups;) {
      Piece piece{ends[e] * p.groups + j, ends[e + 1] - ends[e], 0, {}, {}};
      for (; piece.streams < kMaxStreams && j + piece.streams < p.groups; ++piece.streams) {
        const int64_t s = (j + piece.streams) * rows + ends[e];
        const int part = part_of(p, s);
        if (part < 0) break;
        piece.part[piece.streams] = part;
        piece.channel[piece.streams] = s - p.parts[part].first;
      }
      if (piece.streams > 4 && piece.streams < 8) piece.streams = 4;
      if (piece.streams > 0) pieces.push_back(piece);
      j += std::max(piece.streams, 1);
    }
  return pieces;
}

// Bytes to read that are worth waking a thread for: about 10 microseconds of copying.
constexpr int64_t kGrainBytes = 128 * 1024;

void run(const Params& p) {
  const Kernels& k = kernels();
  const std::vector<Piece> pieces = make_pieces(p);
  if (p.layout == Layout::channels_last) {
    const int64_t grain = std::max<int64_t>(1, kGrainBytes / (p.channels * p.element_bytes));
    torch::stable::parallel_for(0, p.batch * p.height * p.width, grain,
                                [&](int64_t begin, int64_t end) { k.pixels(p, pieces, begin, end); });
    return;
  }
  int64_t rows = 0;
  for (const Piece& piece : pieces) rows += p.batch * piece.rows;
  // Few rows: cut their planes, so that every thread gets about four items.
  const int64_t row_bytes = p.batch * p.channels * p.height * p.width * p.element_bytes / rows;
  const int64_t threads = torch::stable::get_num_threads(), wanted = threads == 1 ? 1 : (4 * threads + rows - 1) / rows;
  const int64_t most = p.height > 1 ? p.height : (p.width * p.element_bytes + 4095) / 4096;
  const int64_t cuts = std::min(wanted, most);
  torch::stable::parallel_for(0, rows * cuts, std::max<int64_t>(1, kGrainBytes * cuts / row_bytes),
                              [&](int64_t begin, int64_t end) { k.planes(p, pieces, cuts, begin, end); });
}

Tensor shuffle_cpu(const Tensor& input, int64_t groups) { return shuffle(input, groups, run); }

Tensor concat_shuffle_cpu(const std::vector<Tensor>& inputs, int64_t groups) {
  return concat_shuffle(inputs, groups, run);
}

std::vector<Tensor> concat_input_grad_cpu(const Tensor& grad_output, const std::vector<int64_t>& channels,
                                          int64_t groups, const std::vector<int64_t>& needed) {
  return concat_input_grad(grad_output, channels, groups, needed, run);
}

}  // namespace
}  // namespace fastconv::channel_shuffle

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::channel_shuffle;
  m.impl("channel_shuffle", TORCH_BOX(&shuffle_cpu));
  m.impl("concat_shuffle", TORCH_BOX(&concat_shuffle_cpu));
  m.impl("_concat_shuffle_input_grad", TORCH_BOX(&concat_input_grad_cpu));
}
