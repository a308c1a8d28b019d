// out = a · W for W quantized in Marlin tiles, fp16 and bf16, sm_80 and later.
//
//   W[k, n] = (Q[k, n] − Z[g, n]) · S[g, n]    g = k / group_size, or g_idx[k]
//
// Q: 4 bits (Z given, or 8), 8 bits (Z = 128), or float8 e4m3 (no Z). Sums are fp32. Nothing is added
// atomically: results are equal bit by bit over repeats.
//
// The product is computed transposed, outᵀ = Wᵀ · aᵀ: 16 columns of W are the rows of an mma and 8 tokens its
// columns, so that one token costs no more than half an mma tile, and a lane's sums belong to the columns
// whose scales it holds.
//
//   block: a tile of `m` tokens × 256 columns, a piece of its rows      warp: all tokens × 64 columns
//
//                4 warps of 64 columns
//              ┌─────┬─────┬─────┬─────┐      A lane's 16 (8 bit: 32) bytes of a 16 × 64 tile of weights are
//    team 0    │     │     │     │     │      its A fragments of four m16 tiles; lane group i = lane / 4 owns
//              ├─────┼─────┼─────┼─────┤      the columns i + 8t, whose scales are 16 consecutive bytes and
//    team 1    │     │     │     │     │      whose zero points are one word.
//      ⋮       └─────┴─────┴─────┴─────┘
//  (pieces of the rows)                       From 32 tokens on, 8 warps of 32 columns: two share a tile, and
//                                             each takes half of a lane's bytes. 128 tokens: one team.
//                                             64 tokens of a wide matrix: one team of 8 warps of 64 columns.
//
// More warps of fewer columns hide each other's latencies (a scheduler needs four for that); a warp of more
// tokens makes fewer weights for as many products, one of more columns loads fewer tokens.
//
// Few tokens (kScalesSums): sums of a group are scaled when the group ends. Many tokens: weights are scaled,
// and rounded to the type of a. In bf16, weights of 4 bits are 1/64 of what they are (dequantize.cuh), or
// with up to 16 tokens (kIsRaw) nibbles as they lie there, which the last scaling makes good.
//
// A block owns a piece of the list of all tiles' units (marlin_gemm.h). What it has of a tile that an earlier
// block began goes to `partial`; that block adds up all parts in the order of k.
#include "marlin_gemm.h"

#include "common/mma.cuh"
#include "common/pdl.cuh"
#include "marlin_gemm_copy.cuh"
#include "marlin_gemm_step.cuh"
#include "marlin_gemm_sums.cuh"

namespace sglk::marlin_gemm {

// A block's units of a tile.
struct Piece {
  int tile;
  int tile_begin, tile_end;  // units of the tile
  int begin, end;            // of the piece

  __device__ __forceinline__ Piece(const Params& p, int begin, int last)
      : tile(p.partition.tile.divide(begin)),
        tile_begin(tile * p.partition.tile.value),
        tile_end(tile_begin + p.partition.tile.value),
        begin(begin),
        end(min(last, tile_end)) {}
};

// What a team has of a piece, and where the sums of it go.
template <class C>
struct Task {
  int tile;
  int unit, units;  // of the tile
  Target target;    // C::kFindsEarly

  // before: units that the block has before the piece.
  __device__ __forceinline__ static Task of(const Params& p, const Place<C>& place, const Piece& piece,
                                            int before) {
    const int count = piece.end - piece.begin;
    const int begin = team_unit(place.team, C::kTeams, before, count);
    const int units = team_unit(place.team + 1, C::kTeams, before, count) - begin;
    const int unit = piece.begin - piece.tile_begin + begin;
    if constexpr (!C::kFindsEarly) return {piece.tile, unit, units, {}};
    return {piece.tile, uniform(unit), uniform(units), Target::of(p, piece.tile)};
  }
};

// The products of a team's `units` units from `unit` on, which lie in the ring; copies as many that come
// later.
template <class C>
__device__ __forceinline__ void multiply_units(const Params& p, Accumulators<C>& acc, Ring<C>& ring,
                                               Walk<C>& ahead, const Place<C>& place, int tile, int unit,
                                               int units) {
  if (units == 0) return;
  const uint16_t* scales = nullptr;
  if (C::kIsActOrder) {
    static_assert(!C::kIsActOrder || C::kColumns == 64);
    const int column = min(p.tiles.at(tile).n * C::kWidth + place.warp * 64, p.n - 64);
    scales = static_cast<const uint16_t*>(p.scales) + column + place.lane / 4 * 8;
  }
  const int group_mask = (1 << group_shift<C>(p)) - 1;
  Group<C> group = {};
  Operands<C> f[2];
  Tokens<C> tokens;
  bool opens = true;  // a group
  await_unit<C>(place, ring.is_full);
  f[0].load(place, ring.slot, 0);
  for (; units > 0; --units, ++unit) {
    const uint32_t slot = ring.slot;
    if (!ring.is_full) ahead.copy(p, place, ring.free_slot);
    ring.is_full = false;
    if constexpr (C::kSharesTokenSums) share_token_sums<C>(place, slot);
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
      const int row = group_row<C>(p, step);
      const bool is_last_step = step + 1 == C::kSteps;
      bool closes = false;
      if (step % 2 == 1) {
        closes = ends_group<C>(group_mask, unit, step) || (C::kScalesSums && is_last_step && units == 1);
      }
      if constexpr (!C::kIsActOrder && !C::kIsRaw) {
        if (step % 2 == 0 && opens) unpack_group<C>(group, load_group<C>(p, place, slot, row));
      }
      RawGroup<C> raw;
      if (C::kScalesSums && closes) raw = load_group<C>(p, place, slot, row);
      if (!is_last_step) {
        f[(step + 1) % 2].load(place, slot, step + 1);
      } else {
        ring.free_slot = slot;
        ring.advance();
        if (units > 1) {
          await_unit<C>(place);
          f[0].load(place, ring.slot, 0);
        } else if (C::kSharesTokenSums) {
          team_barrier<C>(place.team);
        }
      }
      if (loads_tokens<C>(step)) scale_tokens<C>(tokens, acc, f[step % 2].tokens);
      multiply_step<C>(p, acc, group, f[step % 2].words, tokens + !loads_tokens<C>(step),
                       (unit * C::kSteps + step) * 16, scales);
      if (C::kScalesSums && closes) close_group<C>(acc, raw, place, slot);
      if (step % 2 == 1) opens = closes;
    }
  }
}

// The same with many tokens, where the tensor cores must not wait: weights are made one fragment ahead,
// between the products, and the tokens of a step take the place of those that have served. What is read after
// the last step is of no use.
template <class C>
__device__ __forceinline__ void multiply_units_ahead(const Params& p, Sums<C>& sum, Ring<C>& ring,
                                                     Walk<C>& ahead, const Place<C>& place, int unit,
                                                     int units) {
  if (units == 0) return;
  constexpr int kColumnTiles = C::kColumnTiles, kTokenTiles = C::kTokenTiles;
  const int group_mask = (1 << group_shift<C>(p)) - 1;
  Group<C> group = {};
  Operands<C> f;
  await_unit<C>(place);
  f.load(place, ring.slot, 0);
  unpack_group<C>(group, load_group<C>(p, place, ring.slot, 0));
  uint32_t w[4];  // the fragment at hand
#pragma unroll
  for (int e = 0; e < 4; ++e) w[e] = weight_part<C>(f.words, group, 0, e);
  for (; units > 0; --units, ++unit) {
    ahead.copy(p, place, ring.free_slot);
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
      const int next_step = (step + 1) % C::kSteps;
#pragma unroll
      for (int u = 0; u < kColumnTiles; ++u) {
        const bool is_last = u + 1 == kColumnTiles;
        if (is_last) {
          if (next_step == 0) {
            ring.free_slot = ring.slot;
            ring.advance();
            await_unit<C>(place);
          }
          load_words<C>(f.words, place, ring.slot, next_step);
          if (step % 2 == 1 && ends_group<C>(group_mask, unit, step)) {
            const int row = group_row<C>(p, next_step);
            unpack_group<C>(group, load_group<C>(p, place, ring.slot, row));
          }
        }
        uint32_t next[4];
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) {
          mma<typename C::T>(sum[u][j], w, f.tokens[j][0], f.tokens[j][1]);
          if (is_last && j % 2 == 1) load_tokens<C>(f.tokens, place, ring.slot, next_step, j - 1);
          constexpr int kEvery = kTokenTiles / 4;
          if (j % kEvery == kEvery - 1) {
            next[j / kEvery] = weight_part<C>(f.words, group, (u + 1) % kColumnTiles, j / kEvery);
          }
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) w[e] = next[e];
      }
    }
  }
}

// Every team passes as many barriers as the one with most units: racecheck takes threads that have passed
// different numbers of barriers as not ordered by the block's next.
template <class C>
__device__ __forceinline__ void equalize_barriers(int team, int before, int units) {
  const auto barriers = [](int units) {
    return units == 0 ? 0 : units + (C::kWorksAhead || C::kSharesTokenSums);
  };
  const int own = team_unit(team + 1, C::kTeams, before, units) - team_unit(team, C::kTeams, before, units);
  const int most = (units + C::kTeams - 1) / C::kTeams;
#pragma unroll 1
  for (int i = barriers(own); i < barriers(most); ++i) team_barrier<C>(team);
}

// Reports a block's part of its first tile, if another block began that, to the one that did. first: of the
// block's units. All threads have passed a barrier since they wrote the part.
__device__ __forceinline__ void report_part(const Params& p, int first) {
  const int tile_begin = Piece(p, first, first).tile_begin;
  if (threadIdx.x == 0 && first > tile_begin) {
    add_release(p.arrivals + p.partition.block_of(tile_begin), 1);
  }
}

// Adds the sums of all teams, and of all blocks where this one began the tile, and stores them; hands them
// over where it did not. C::kFindsEarly: known_first, of the block's units, and known, of the piece.
template <class C>
__device__ __forceinline__ void finish_piece(const Params& p, const Sums<C>& sum, const Place<C>& place,
                                             const Piece& piece, int known_first, const Target& known,
                                             char* team_sums) {
  const int block = opaque(block_index()), first = C::kFindsEarly ? known_first : p.partition.first(block);
  equalize_barriers<C>(place.team, units_before<C>(first, piece.begin), piece.end - piece.begin);
  const bool reports_now = !C::kReportsLate || piece.end == p.partition.first(block + 1);
  const bool is_first = C::kHasDirect ? piece.begin == first_unit<C>(p, block) : piece.begin <= first;
  if (!is_first) {  // the sums that teams handed each other must have been read
    block_barrier<C>();
    if (C::kReportsLate && reports_now && piece.begin > first) report_part(p, first);
  }
  OwnSums<C> own = {};
  add_teams<C>(own, sum, place, team_sums);
  const TileIndex index = C::kFindsEarly ? known.index : p.tiles.at(piece.tile);
  const int m0 = index.m * C::kTokens, n0 = index.n * C::kWidth + place.warp * C::kColumns, rows = p.m - m0;
  if (piece.begin > piece.tile_begin) {
    if (owns_sums<C>(place)) hand_over<C>(p, own, place, block, rows);
    if (reports_now) {
      block_barrier<C>();
      if (!C::kFindsEarly) {
        report_part(p, first);
      } else if (threadIdx.x == 0) {
        add_release(p.arrivals + known.first, 1);
      }
    }
    return;
  }
  if (piece.end < piece.tile_end) {
    const int last = C::kFindsEarly ? known.last : p.partition.block_of(piece.tile_end - 1);
    collect<C>(p, own, place, block, last, rows);
  }
  if (owns_sums<C>(place) && n0 < p.n) store_tile<C>(p, own, place, m0, n0);
}

template <class C>
__device__ __forceinline__ void run(const Params& p) {
  char* const shared = dynamic_shared();
  Place<C> place;
  Ring<C> ring;
  const int team = C::kReadsOnce ? threadIdx.x / C::kTeamThreads : place.team;  // see copy_async
  ring.base = opaque(shared_address(shared) + team * (C::kStages * C::kUnitBytes));
  ring.slot = ring.free_slot = ring.base;
  char* const team_sums = shared + C::kTeams * C::kStages * C::kUnitBytes;

  const int last = p.partition.first(block_index() + 1);
  int begin = first_unit<C>(p, block_index());
  // The first weights come while the predecessor drains: nothing that lets its successor start early writes
  // weights (pdl.cuh).
  Walk<C> ahead(p, place, begin, last);
  Walk<C> early = ahead;
  uint32_t slot = ring.base;
#pragma unroll 1
  for (int s = 0; s < C::kStages - 1; ++s) {
    early.template copy<true, false>(p, place, slot);
    slot += C::kUnitBytes;
  }
  place.find_addresses(p);
  ahead.open_rest(p, place);
#pragma unroll
  for (int i = 0; i < Place<C>::kGroupCopies; ++i) {
    if (place.copies_group[i] && ahead.left > 0) prefetch_l2(ahead.group_at(p, place, i));
  }
  if (C::kWeight == Weight::kInt4 && p.zeros == nullptr) fill_zeros<C>(place, ring.base);
  Task<C> task = {};
  const auto find_task = [&] {
    // Anew, so as not to take a register during the products.
    const int first = C::kFindsEarly ? ahead.first : p.partition.first(opaque(block_index()));
    task = Task<C>::of(p, place, Piece(p, begin, ahead.last), units_before<C>(first, begin));
  };
  if (C::kFindsEarly && begin < ahead.last) find_task();
  wait_for_predecessor();
  let_successor_start();

#pragma unroll 1
  for (int s = 0; s < C::kStages - 1; ++s) {
    ahead.template copy<false, true>(p, place, ring.free_slot);
    ring.free_slot += C::kUnitBytes;
  }
  if constexpr (C::kFillsRing) {
    ahead.copy(p, place, ring.free_slot);
    ring.is_full = true;
  }

  while (begin < ahead.last) {
    Accumulators<C> acc = {};
    if (!C::kFindsEarly) find_task();
    if constexpr (C::kWorksAhead) {
      multiply_units_ahead<C>(p, acc.sum, ring, ahead, place, task.unit, task.units);
    } else {
      multiply_units<C>(p, acc, ring, ahead, place, task.tile, task.unit, task.units);
    }
    const Piece piece(p, opaque(begin), ahead.last);  // anew, too
    finish_piece<C>(p, acc.sum, place, piece, ahead.first, task.target, team_sums);
    begin = next_unit<C>(p, block_index(), piece.end);
    if (C::kFindsEarly && begin < ahead.last) find_task();
  }
}

// out[m, k] = a[m, perm[k]]. Grid: (m in x, blocks of kGatherThreads columns in y). An index out of range
// gives 0.
__device__ __forceinline__ void gather(const Params& p) {
  const int k = blockIdx.y * kGatherThreads + threadIdx.x;
  wait_for_predecessor();
  let_successor_start();
  if (k >= p.k) return;
  const int64_t m = blockIdx.x;
  const int source = p.perm != nullptr ? p.perm[k] : k;
  static_cast<uint16_t*>(p.out)[m * p.k + k] =
      source >= 0 && source < p.k ? static_cast<const uint16_t*>(p.a)[m * p.a_stride + source] : uint16_t{0};
}

}  // namespace sglk::marlin_gemm

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "marlin_gemm_sm90.cuh"
#endif

#define SGLK_MARLIN_ENTRY(dtype, name, threads, body)                                     \
  extern "C" __global__ void __launch_bounds__(threads, 1)                                \
      marlin_gemm_##dtype##_##name(const __grid_constant__ sglk::marlin_gemm::Params p) { \
    body;                                                                                 \
  }

#define SGLK_MARLIN_GEMM(dtype, type, name, weight, is_act_order, tile)                                     \
  SGLK_MARLIN_ENTRY(                                                                                        \
      dtype, name, sglk::marlin_gemm::tile.threads(),                                                       \
      (sglk::marlin_gemm::run<sglk::marlin_gemm::Config<                                                    \
           type, sglk::marlin_gemm::Weight::weight, is_act_order, sglk::marlin_gemm::tile.m,                \
           sglk::marlin_gemm::tile.columns, sglk::marlin_gemm::tile.k_teams, sglk::marlin_gemm::tile.steps, \
           sglk::marlin_gemm::tile.stages, sglk::marlin_gemm::tile.batch, sglk::marlin_gemm::tile.group,    \
           sglk::marlin_gemm::tile.width>>(p)))

#define SGLK_MARLIN_DTYPE(dtype, type)                                             \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8, kInt4, false, kTile8)                       \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8_deep, kInt4, false, kTile8Deep)              \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8_group, kInt4, false, kTile8Group)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8_long, kInt4, false, kTile8Long)              \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8_narrow, kInt4, false, kTile8Narrow)          \
  SGLK_MARLIN_GEMM(dtype, type, u4_m8_narrow_long, kInt4, false, kTile8NarrowLong) \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16, kInt4, false, kTile16)                     \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16_deep, kInt4, false, kTile16Deep)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_m16_long, kInt4, false, kTile16Long)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32, kInt4, false, kTile32)                     \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32_deep, kInt4, false, kTile32Deep)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32_group, kInt4, false, kTile32Group)          \
  SGLK_MARLIN_GEMM(dtype, type, u4_m32_long, kInt4, false, kTile32Long)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_m64, kInt4, false, kTile64)                     \
  SGLK_MARLIN_GEMM(dtype, type, u4_m64_group, kInt4, false, kTile64Group)          \
  SGLK_MARLIN_GEMM(dtype, type, u4_m64_wide, kInt4, false, kTile64Wide)            \
  SGLK_MARLIN_GEMM(dtype, type, u4_m128, kInt4, false, kTile128)                   \
  SGLK_MARLIN_GEMM(dtype, type, u4_m128_long, kInt4, false, kTile128Long)          \
  SGLK_MARLIN_GEMM(dtype, type, u8_m16, kInt8, false, kTile16Byte)                 \
  SGLK_MARLIN_GEMM(dtype, type, u8_m64, kInt8, false, kTile64Byte)                 \
  SGLK_MARLIN_GEMM(dtype, type, fp8_m16, kFloat8, false, kTile16Byte)              \
  SGLK_MARLIN_GEMM(dtype, type, fp8_m64, kFloat8, false, kTile64Byte)              \
  SGLK_MARLIN_GEMM(dtype, type, u4_act_order_m64, kInt4, true, kTile64Order)       \
  SGLK_MARLIN_GEMM(dtype, type, u8_act_order_m64, kInt8, true, kTile64OrderByte)   \
  SGLK_MARLIN_ENTRY(dtype, gather, sglk::marlin_gemm::kGatherThreads, sglk::marlin_gemm::gather(p))

SGLK_MARLIN_DTYPE(bf16, sglk::bf16)
SGLK_MARLIN_DTYPE(f16, sglk::f16)

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SGLK_MARLIN_SM90(dtype, type, name, tile)                                                            \
  extern "C" __global__ void __launch_bounds__(sglk::marlin_gemm::tile.threads(), 1)                         \
      marlin_gemm_sm90_##dtype##_##name(const __grid_constant__ sglk::marlin_gemm::Sm90Params p) {           \
    sglk::marlin_gemm::sm90::run<sglk::marlin_gemm::sm90::Config<                                            \
        type, sglk::marlin_gemm::tile.tokens, sglk::marlin_gemm::tile.stages, sglk::marlin_gemm::tile.teams, \
        sglk::marlin_gemm::tile.group, sglk::marlin_gemm::tile.width>>(p);                                   \
  }

#define SGLK_MARLIN_SM90_DTYPE(dtype, type)                       \
  SGLK_MARLIN_SM90(dtype, type, u4_m16_group, kSm90Tile16Group)   \
  SGLK_MARLIN_SM90(dtype, type, u4_m16_narrow, kSm90Tile16Narrow) \
  SGLK_MARLIN_SM90(dtype, type, u4_m32, kSm90Tile32)              \
  SGLK_MARLIN_SM90(dtype, type, u4_m32_group, kSm90Tile32Group)   \
  SGLK_MARLIN_SM90(dtype, type, u4_m32_narrow, kSm90Tile32Narrow) \
  SGLK_MARLIN_SM90(dtype, type, u4_m64, kSm90Tile64)              \
  SGLK_MARLIN_SM90(dtype, type, u4_m128, kSm90Tile128)

SGLK_MARLIN_SM90_DTYPE(bf16, sglk::bf16)
SGLK_MARLIN_SM90_DTYPE(f16, sglk::f16)
#endif
