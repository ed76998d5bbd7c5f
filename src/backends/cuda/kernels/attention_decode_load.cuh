// Shared memory, items and the loading warp of attention_decode.cuh.
#pragma once

#include "backends/cuda/kernels/attention_boxes.cuh"
#include "backends/cuda/kernels/attention_ring.cuh"
#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/tma.cuh"

namespace ostro::cuda {

constexpr int kRoundTiles = 4;  // a warp each
constexpr int kRoundPositions = kRoundTiles * kPositions;
static_assert(kPartTiles % kRoundTiles == 0);

template <class C, int kHead>
struct DecodeLayout {
  static constexpr int kThreads = 32 * (kRoundTiles + 1);
  // Tiles of keys or values, in the order that they are used: rows of 128 bytes, swizzled.
  static constexpr int kBlocks = (kHead * int(sizeof(C)) + 127) / 128;  // of 128 bytes of a row
  static constexpr int kBlockBytes = kPositions * 128;
  static constexpr int kTileBytes = kBlocks * kBlockBytes;
  // Of an e4m3 cache two blocks share a multiprocessor: one alone waits for what it widens.
  static constexpr int kStages = (192 << 10) / decode_blocks(sizeof(C)) / kTileBytes;
  // The queries of this item and of the next.
  static constexpr int kItems = 2;
  static constexpr int kQueryBytes = kMostDecodeGroup * kHead * 2;
  static constexpr int kQueries = kStages * kTileBytes;
  static constexpr int kWeights = kQueries + kItems * kQueryBytes;
  static constexpr int kTotals = kWeights + kRoundTiles * kPositions * kMostDecodeGroup * 2;
  static constexpr int kMost = kTotals + kRoundTiles * kMostDecodeGroup * 16;
  static constexpr int kItem = kMost + kRoundTiles * kMostDecodeGroup * 4;
  static constexpr int kItemBytes = 32;
  static constexpr int kBarriers = kItem + kItems * kItemBytes;
  using Tiles = Ring<kStages, 0, kTileBytes, kBarriers>;
  using Items = Ring<kItems, kItem, kItemBytes, Tiles::kEnd>;
  static constexpr int kSharedBytes = Items::kEnd + 1024;
  static_assert((kSharedBytes + 1024) * decode_blocks(sizeof(C)) <= 228 << 10);

  __device__ static std::uint32_t at(int p, int c) { return swizzled_at<kBlockBytes>(p, c); }
};

// What one item sees: positions [begin, end), none if begin >= end. token < 0: no item follows.
struct DecodeItem {
  int token, kv_head, split, begin, end;
  int request;
};

// The `at`-th of all.
__device__ inline DecodeItem decode_item(const AttentionArgs& a, unsigned at) {
  DecodeItem item{};
  const unsigned splits = unsigned(a.splits), heads = unsigned(a.cache.kv_heads);
  item.split = int(at % splits);
  item.kv_head = int(at / splits % heads);
  item.token = int(at / splits / heads);
  if (item.token >= a.tokens) return item;
  // Most steps have one token of each request.
  int r = min(item.token, a.requests.count - 1);
  int next = a.requests.query_start[r + 1];
  int length = a.requests.context_len[r];
  if (a.requests.query_start[r] > item.token || next <= item.token) {
    if (is_padding(a.requests, item.token)) return item;
    r = request_of_token(a.requests, item.token);
    next = a.requests.query_start[r + 1];
    length = a.requests.context_len[r];
  }
  item.request = r;
  const int position = length - (next - item.token);
  item.begin = a.window > 0 ? max(0, position - a.window + 1) : 0;
  item.end = position + 1;
  if (a.splits > 1) {
    item.begin = max(item.begin, item.split * kSplitTokens);
    item.end = min(item.end, (item.split + 1) * kSplitTokens);
  }
  return item;
}

// The loading warp. It finds the first items, and the pages of the first, before its predecessors
// have ended: ops::Requests is not written by them. Keys and values are, those of positions before
// this step's too: a request may share blocks that another one fills in this step.
template <class T, class C, int kHead>
struct DecodeLoader {
  using L = DecodeLayout<C, kHead>;
  const AttentionArgs& a;
  const CacheMaps& maps;
  std::uint32_t shared;
  unsigned char* shared_data;
  int lane = int(threadIdx.x) % 32;
  int boxes, box, block;          // of a tile; this lane's
  int items = 0, tiles_done = 0;  // before

  __device__ DecodeLoader(const AttentionArgs& a, const CacheMaps& maps, std::uint32_t shared,
                          unsigned char* shared_data)
      : a(a), maps(maps), shared(shared), shared_data(shared_data) {
    boxes = kPositions / maps.box_tokens;
    box = lane % boxes;
    block = lane / boxes;
  }

  __device__ void run() {
    const unsigned all = unsigned(a.tokens * a.cache.kv_heads * a.splits);
    for (unsigned at = blockIdx.x; at < all; at += 32 * gridDim.x) {
      const DecodeItem mine = decode_item(a, at + unsigned(lane) * gridDim.x);
      unsigned left = __ballot_sync(~0u, mine.begin < mine.end);
      for (; left != 0; left &= left - 1) {
        const int from = __ffs(int(left)) - 1;
        const auto get = [&](int x) { return __shfl_sync(~0u, x, from); };
        load({get(mine.token), get(mine.kv_head), get(mine.split), get(mine.begin), get(mine.end),
              get(mine.request)});
      }
    }
    if (items == 0) begin_kernel();
    tell({.token = -1});
  }

  // Gives the item to the warps that compute, its queries with it.
  __device__ void tell(const DecodeItem& item) {
    ptx::barrier_wait(L::Items::empty(shared, items), L::Items::parity(items) ^ 1);
    if (lane == 0) {
      const int at = items % L::kItems;
      *reinterpret_cast<DecodeItem*>(shared_data + L::kItem + at * L::kItemBytes) = item;
      const std::uint32_t full = L::Items::full(shared, items);
      if (item.token < 0) {
        ptx::barrier_arrive(full);
      } else {
        const int bytes = a.group * kHead * 2;
        ptx::barrier_arrive_expect(full, bytes);
        ptx::copy_bytes(shared + L::kQueries + at * L::kQueryBytes,
                        static_cast<const T*>(a.q) + item.token * a.q_stride +
                            std::int64_t(item.kv_head) * a.group * kHead,
                        bytes, full);
      }
    }
    ++items;
  }

  __device__ void load(const DecodeItem& item) {
    const int first = item.begin / kPositions, last = (item.end - 1) / kPositions;
    const int first_round = first / kRoundTiles, last_round = last / kRoundTiles;
    int row = find(item, first_round);
    if (items == 0) begin_kernel();
    tell(item);
    for (int round = first_round; round <= last_round; ++round) {
      const int next_row = round < last_round ? find(item, round + 1) : 0;
      const int t0 = max(first, round * kRoundTiles),
                t1 = min(last, round * kRoundTiles + kRoundTiles - 1);
#pragma unroll
      for (int is_value = 0; is_value < 2; ++is_value)
        for (int t = t0; t <= t1; ++t, ++tiles_done) {
          const int box_row = __shfl_sync(~0u, row, t % kRoundTiles * boxes + box);
          ptx::barrier_wait(L::Tiles::empty(shared, tiles_done), L::Tiles::parity(tiles_done) ^ 1);
          if (lane == 0)
            ptx::barrier_arrive_expect(L::Tiles::full(shared, tiles_done), L::kTileBytes);
          __syncwarp();
          if (block < L::kBlocks)
            ptx::copy_box(L::Tiles::at(shared, tiles_done) + block * L::kBlockBytes +
                              box * maps.box_tokens * 128,
                          is_value ? maps.v : maps.k, 128 * block, box_row,
                          L::Tiles::full(shared, tiles_done));
        }
      row = next_row;
    }
  }

  // A lane finds the row of one box of a round: one past the cache's end, which is zeros, where
  // nothing of the box is seen.
  __device__ int find(const DecodeItem& item, int round) const {
    const std::int32_t* const pages =
        a.requests.block_table + item.request * a.requests.table_stride;
    const int p = round * kRoundPositions + lane * maps.box_tokens;
    const bool seen =
        lane < kRoundTiles * boxes && item.begin < p + maps.box_tokens && p < item.end;
    const std::int64_t row = seen ? a.cache.row(pages, item.kv_head, p) : -1;
    return int(row < 0 ? a.cache_rows : row);
  }
};

}  // namespace ostro::cuda
