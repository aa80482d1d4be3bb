// Compiled with the flags of AVX-512, so that what it shares with
// binary_mos_linear_avx512.cc is the same code, and -mamx-tile -mamx-int8.
//
// The tile unit multiplies bytes: 16 rows of 64 by 64 of 16, sums in 32 bits. A
// value q is two signed bytes, q = 256 high + low, which are two rows of A; a
// sign is a byte, +1 or -1, of B. Both digits of eight tokens fill the 16 rows.
//
// Signs become bytes once for all tokens of the tile. A word of 32 bits gets
// the four of the nibble at its low end from a table in a register (vpermd
// reads no other bits of it), then the word is shifted: eight nibbles of 16
// rows from one load of 64 bytes. So lane n of tile j stands for the row at
// position 4 n + j, and sums are kept in that order until the end.
//
// The tile unit takes 16 cycles per instruction and works beside the vector
// units as far as the processor looks ahead, so their work is spread among its
// instructions: signs of the next tiles, sums of the last.
#include <immintrin.h>

#include "engine/kernels/cpu/binary_mos_linear_inl.h"
#include "engine/kernels/cpu/binary_mos_linear_tables_avx2.h"

namespace binarymos::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;  // 64 inputs of A; four of each row of B
constexpr int kTileBytes = kTileRows * kTileRowBytes;
constexpr int kSteps = kSliceInputs / kTileRowBytes;  // tiles along a slice
constexpr int kPairsPerStep = kSlicePairs / kSteps;
constexpr int kDigits = 2;
constexpr int kTileTokensOfA = kTileRows / kDigits;

// Half the rows of a block, two tiles of B, are multiplied side by side.
constexpr int kHalves = 2;
constexpr int kHalfRows = kBlockRows / kHalves;
constexpr int kStepBytes = 2 * kTileBytes;
// [step][tile of rows][group of four inputs][row][input]
using HalfSigns = int8_t[kSteps * kStepBytes];
using Products = int32_t[2][kTileRows * kTileRows];
using BlockSums = float[kTileTokens][kBlockRows];

constexpr int kTaskBlocks = kTaskStrips * kStripBlocks;

#define BINARYMOS_INLINE inline __attribute__((always_inline))

// The operand of ldtilecfg: Intel SDM, volume 1, chapter 18.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// How tokens are shared out over tiles of A, which all have the same shape: the
// last may begin before the one ahead of it ends.
struct TokenTiles {
  explicit TokenTiles(int64_t num_tokens)
      : tokens(num_tokens),
        count((num_tokens + kTileTokensOfA - 1) / kTileTokensOfA),
        size((num_tokens + count - 1) / count) {}

  int64_t begin(int64_t i) const {
    return i + 1 < count ? i * size : tokens - size;
  }
  // Pairs of the next signs per multiplication of tile `i`: all tiles together
  // have all pairs.
  int pairs(int64_t i) const {
    if (count == 1) return 4;
    return count == 2 || (count == 3 && i == 0) ? 2 : 1;
  }

  int64_t tokens;
  int64_t count;  // at most 4
  int64_t size;   // tokens of a tile
};
static_assert(kTileTokens <= 4 * kTileTokensOfA);

// The tile registers of this thread: 0 and 1 are products, 2 is of A, 3 and 4
// are of B.
class TileSession {
 public:
  explicit TileSession(const TokenTiles& tiles) {
    TileConfig config;
    for (int i = 0; i < 5; ++i) {
      config.row_bytes[i] = kTileRowBytes;
      config.rows[i] =
          i < 3 ? static_cast<uint8_t>(kDigits * tiles.size) : kTileRows;
    }
    _tile_loadconfig(&config);
  }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// The part of a `Core` that prepares a token.
struct AmxCore {
  static constexpr int kTokenBytes = kDigits * kSliceInputs;  // [digit][input]

  static void Quantize(const float u[kSliceInputs], float inverse,
                       int16_t q[kSliceInputs]) {
    Avx2Tables::Quantize(u, inverse, q);
  }

  // The low bytes, signed, and what they leave.
  static void Encode(const int16_t q[kSliceInputs], BinaryMosSlice& /*slice*/,
                     uint8_t token[kTokenBytes]) {
    for (int i = 0; i < kSliceInputs; i += 32) {
      const __m512i value = _mm512_load_si512(q + i);
      const __m512i high =
          _mm512_srai_epi16(_mm512_add_epi16(value, _mm512_set1_epi16(128)), 8);
      StoreBytes(value, token + i);
      StoreBytes(high, token + kSliceInputs + i);
    }
  }

 private:
  static void StoreBytes(__m512i words, uint8_t* bytes) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes),
                       _mm512_cvtepi16_epi8(words));
  }
};

// Word n: byte i is +1 if bit i of n is set, else -1.
__m512i NibbleTable() {
  const __m512i numbers = _mm512_mullo_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_set1_epi32(0x01010101));
  return _mm512_mask_blend_epi8(
      _mm512_test_epi8_mask(numbers, _mm512_set1_epi32(0x08040201)),
      _mm512_set1_epi8(-1), _mm512_set1_epi8(1));
}

// Signs to be expanded: from the first pair on, for half of the rows.
struct Expansion {
  const uint8_t* from;
  int8_t* to;  // HalfSigns, of that pair on
  __m512i table;
};

// Pairs [kPair, kPair + kCount). Offsets are constants: arithmetic on addresses
// takes the ports that the shuffles need.
template <int kHalf, int kPair, int kCount>
BINARYMOS_INLINE void Expand(const Expansion& work) {
  if constexpr (kCount > 0) {
    constexpr int kShift = 16 * kHalf;
    const uint8_t* from = work.from + kPair * kBlockRows;
    int8_t* to = work.to + kPair / kPairsPerStep * kStepBytes +
                 kPair % kPairsPerStep * 2 * kTileRowBytes;
    const __m512i bytes = _mm512_load_si512(from);
    const __m512i nibbles[] = {
        kShift == 0 ? bytes : _mm512_srli_epi32(bytes, kShift),
        _mm512_srli_epi32(bytes, kShift + 4),
        _mm512_srli_epi32(bytes, kShift + 8),
        _mm512_srli_epi32(bytes, kShift + 12)};
    for (int i = 0; i < 4; ++i) {
      _mm512_store_si512(to + i / 2 * kTileBytes + i % 2 * kTileRowBytes,
                         _mm512_permutexvar_epi32(nibbles[i], work.table));
    }
    Expand<kHalf, kPair + 1, kCount - 1>(work);
  }
}

// Products of a tile of tokens that wait to be scaled and added up; pointers
// are to those of the first token.
struct PendingSums {
  const int32_t* products = nullptr;
  const BinaryMosSlice* slices = nullptr;
  float* sums = nullptr;
  float* totals = nullptr;
  int64_t tokens = 0;
  bool starts_group = false;
  bool ends_group = false;
};

// Of token t, if there is one: sums = fma(S, scale, sums), from 0 where a group
// of slices starts; where it ends, that is added to the totals. S of a slice
// that is zero or not finite is of no meaning, and its scale 0 or NaN.
BINARYMOS_INLINE void AddSums(const PendingSums& pending, int64_t t) {
  if (t >= pending.tokens) return;
  const __m512 scale = _mm512_set1_ps(pending.slices[t].scale);
  for (int j = 0; j < 2; ++j) {
    const int32_t* digits =
        pending.products + (j * kTileRows + t * kDigits) * kTileRows;
    const __m512 s = _mm512_cvtepi32_ps(_mm512_add_epi32(
        _mm512_load_si512(digits),
        _mm512_slli_epi32(_mm512_load_si512(digits + kTileRows), 8)));
    const int64_t place = t * kBlockRows + j * kTileRows;
    const __m512 before = pending.starts_group
                              ? _mm512_setzero_ps()
                              : _mm512_load_ps(pending.sums + place);
    const __m512 after = _mm512_fmadd_ps(s, scale, before);
    if (pending.ends_group) {
      float* total = pending.totals + place;
      _mm512_store_ps(total, _mm512_add_ps(_mm512_load_ps(total), after));
    } else {
      _mm512_store_ps(pending.sums + place, after);
    }
  }
}

// Two of the eight multiplications below.
template <int kStep, int kHalf, int kPairs>
BINARYMOS_INLINE void MultiplyStep(const uint8_t* a, const int8_t* b,
                                   const Expansion& work,
                                   const PendingSums& pending) {
  b += kStep * kStepBytes;
  _tile_loadd(2, a + kStep * kTileRowBytes, kSliceInputs);
  _tile_loadd(3, b, kTileRowBytes);
  _tile_dpbssd(0, 2, 3);
  Expand<kHalf, 2 * kStep * kPairs, kPairs>(work);
  AddSums(pending, 2 * kStep);
  _tile_loadd(4, b + kTileBytes, kTileRowBytes);
  _tile_dpbssd(1, 2, 4);
  Expand<kHalf, (2 * kStep + 1) * kPairs, kPairs>(work);
  AddSums(pending, 2 * kStep + 1);
}

// Products of a tile of tokens and two of rows, a slice of each. Meanwhile
// expands 8 * kPairs pairs of signs for the half kHalf, and adds up the
// products of the tile before.
template <int kHalf, int kPairs>
void MultiplyTiles(const uint8_t* a, const int8_t* b, Expansion work,
                   PendingSums pending, Products& products) {
  static_assert(kSteps == 4 && kTileTokensOfA == 2 * kSteps);
  _tile_zero(0);
  _tile_zero(1);
  MultiplyStep<0, kHalf, kPairs>(a, b, work, pending);
  MultiplyStep<1, kHalf, kPairs>(a, b, work, pending);
  MultiplyStep<2, kHalf, kPairs>(a, b, work, pending);
  MultiplyStep<3, kHalf, kPairs>(a, b, work, pending);
  _tile_stored(0, products[0], kTileRowBytes);
  _tile_stored(1, products[1], kTileRowBytes);
}

template <int kHalf>
void MultiplyTiles(const uint8_t* a, const int8_t* b, int pairs,
                   const Expansion& work, const PendingSums& pending,
                   Products& products) {
  switch (pairs) {
    case 1:
      return MultiplyTiles<kHalf, 1>(a, b, work, pending, products);
    case 2:
      return MultiplyTiles<kHalf, 2>(a, b, work, pending, products);
    default:
      return MultiplyTiles<kHalf, 4>(a, b, work, pending, products);
  }
}

// Position 4 n + j stands for a row whose lane is odd if j > 1: RowPosition().
void OrderRows(float sums[kBlockRows]) {
  const __m512i order =
      _mm512_setr_epi32(0, 16, 1, 17, 4, 20, 5, 21, 2, 18, 3, 19, 6, 22, 7, 23);
  const __m512i later = _mm512_add_epi32(order, _mm512_set1_epi32(8));
  __m512 tile[4];
  for (int j = 0; j < 4; ++j) tile[j] = _mm512_load_ps(sums + j * kTileRows);
  for (int j = 0; j < 2; ++j) {
    float* rows = sums + j * kTileRows;
    _mm512_store_ps(rows, _mm512_permutex2var_ps(tile[j], order, tile[j + 2]));
    _mm512_store_ps(rows + kHalfRows,
                    _mm512_permutex2var_ps(tile[j], later, tile[j + 2]));
  }
}

// The signs of a task's blocks.
class TaskSigns {
 public:
  TaskSigns(const BinaryMosLayer& layer, int64_t first, int blocks)
      : num_slices_(layer.num_slices), blocks_(blocks) {
    for (int b = 0; b < blocks; ++b) {
      const int64_t in_strip = (first + b) % kStripBlocks;
      const int64_t strip = first + b - in_strip;  // its first block
      const int64_t left = layer.num_blocks - strip;
      begin_[b] = layer.sign + (strip * num_slices_ + in_strip) * kBlockBytes;
      stride_[b] = (left < kStripBlocks ? left : kStripBlocks) * kBlockBytes;
    }
  }

  const uint8_t* at(int64_t slice, int block) const {
    return begin_[block] + slice * stride_[block];
  }
  // Those of the next block, or of the first in the next slice. After the last
  // there is nothing to expand: the same once more.
  const uint8_t* after(int64_t slice, int block) const {
    if (block + 1 < blocks_) return at(slice, block + 1);
    return slice + 1 < num_slices_ ? at(slice + 1, 0) : at(slice, block);
  }

 private:
  int64_t num_slices_;
  int blocks_;
  const uint8_t* begin_[kTaskBlocks];
  int64_t stride_[kTaskBlocks];  // from slice to slice
};

// The blocks take turns at each slice, so that the tokens' side of it stays in
// the nearest cache.
void MultiplyByTiles(const BinaryMosLayer& layer, const BinaryMosTile& tile,
                     int64_t begin_strip, int64_t end_strip) {
  const int64_t first_block = begin_strip * kStripBlocks;
  const int64_t left = layer.num_blocks - first_block;
  const int64_t most = (end_strip - begin_strip) * kStripBlocks;
  const int blocks = static_cast<int>(left < most ? left : most);
  const TaskSigns signs(layer, first_block, blocks);
  const TokenTiles tiles(tile.tokens);
  const TileSession session(tiles);

  alignas(64) HalfSigns expanded[kHalves];
  alignas(64) Products products[2];
  alignas(64) BlockSums sums[kTaskBlocks];
  alignas(64) BlockSums totals[kTaskBlocks];
  for (int b = 0; b < blocks; ++b) {
    for (int64_t t = 0; t < tile.tokens; ++t) {
      for (int r = 0; r < kBlockRows; ++r) totals[b][t][r] = 0.0f;
    }
  }

  Expansion work = {signs.at(0, 0), expanded[0], NibbleTable()};
  Expand<0, 0, kSlicePairs>(work);
  PendingSums pending;
  int turn = 0;  // of the products
  // A tile of tokens by half a block; expands for the other half.
  const auto multiply = [&](int64_t slice, int half, int64_t i) {
    const int64_t token = slice * tile.tokens + tiles.begin(i);
    const uint8_t* a = tile.tables + token * AmxCore::kTokenBytes;
    const int pairs = tiles.pairs(i);
    if (half == 0) {
      MultiplyTiles<1>(a, expanded[0], pairs, work, pending, products[turn]);
    } else {
      MultiplyTiles<0>(a, expanded[1], pairs, work, pending, products[turn]);
    }
    work.from += 2 * kSteps * pairs * kBlockRows;
    work.to += 2 * kSteps * pairs / kPairsPerStep * kStepBytes;
  };
  for (int group = 0; group < kSumGroups; ++group) {
    const int64_t begin = GroupBegin(group, layer.num_slices);
    const int64_t end = GroupBegin(group + 1, layer.num_slices);
    for (int64_t s = begin; s < end; ++s) {
      for (int b = 0; b < blocks; ++b) {
        for (int half = 0; half < kHalves; ++half) {
          work.from = half == 0 ? signs.at(s, b) : signs.after(s, b);
          work.to = expanded[1 - half];
          for (int64_t i = 0; i < tiles.count; ++i) {
            multiply(s, half, i);
            const int64_t first = i * tiles.size;
            const int64_t again = first - tiles.begin(i);  // tokens
            pending = {
                .products = products[turn][0] + again * kDigits * kTileRows,
                .slices = tile.slices + s * tile.tokens + first,
                .sums = sums[b][first] + half * kHalfRows,
                .totals = totals[b][first] + half * kHalfRows,
                .tokens = tiles.size - again,
                .starts_group = s == begin,
                .ends_group = s + 1 == end};
            turn = 1 - turn;
          }
        }
      }
    }
  }
  for (int64_t t = 0; t < pending.tokens; ++t) AddSums(pending, t);

  for (int b = 0; b < blocks; ++b) {
    for (int64_t t = 0; t < tile.tokens; ++t) OrderRows(totals[b][t]);
    for (int r = 0; r < kBlockRows; r += kLanes) {
      const int64_t row = (first_block + b) * kBlockRows + r;
      if (row >= layer.out_features) break;
      StoreRows(layer, tile, row, totals[b][0] + r, kBlockRows);
    }
  }
}

}  // namespace

const BinaryMosKernels& AmxBinaryMosKernels() {
  static constexpr BinaryMosKernels kKernels = {&Prepare<AmxCore>,
                                                &MultiplyByTiles};
  return kKernels;
}

}  // namespace binarymos::cpu
