// Attention of many examples, forward and backward, in the products of bf16 pairs that AVX-512 processors have.
// native_attention.py calls it with addresses; block_attention.py is its plain form, by which it is tested.
//
// A task is one example and one key head with its queries' heads. Blocks of up to 64 queries go through it, the queries
// in the columns of all tables and the keys in the rows, so that a query's maximum and sum are columns' and need no
// sums across a register, and dK and dV take their left sides as they lie. What a block computes stays in the
// processor's caches: no scores and no probabilities are kept, the backward pass makes them again from the logarithm of
// each query's sum (FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2).
//
// A product takes its left side as rows of bf16 and its right side as pairs of rows side by side, as the processor's
// instruction asks: right[k / 2][column][k % 2]. Sums are fp32.

#include "numbers.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>

namespace {

constexpr long LANES = 16, VECTORS = 4, QUERIES = LANES * VECTORS;  // columns of a block
constexpr long ROWS = 6;                                            // of a tile: 24 sums, 4 right sides, 32 registers
constexpr long KEYS = 512;                                          // at once in the forward pass

inline long up(long number, long step) { return (number + step - 1) / step * step; }

// Room of a thread, 64 bytes aligned, kept from call to call.
class Room {
  public:
    template <class T> T *take(long count) {
        const size_t begin = taken;
        taken += size_t(up(count * long(sizeof(T)), 64));
        return reinterpret_cast<T *>(base + begin);
    }
    void reserve(size_t bytes) {
        taken = 0;
        if (bytes + 64 > buffer.size()) buffer.resize(bytes + 64);
        base = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) & ~uintptr_t(63));
    }

  private:
    std::vector<char> buffer;
    char *base = nullptr;
    size_t taken = 0;
};

inline __m512i pair_up(__m512 even, __m512 odd) {  // [even_0, odd_0, even_1, odd_1, ...]
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// to[column][row] = from[row][column] for 32-bit numbers: `rows` and `columns` of them, up to 16 each; rows that are
// not there read as zeros, and `columns` rows of 16 are written.
inline void transpose_16(const uint32_t *from, long stride, long rows, long columns, uint32_t *to, long to_stride) {
    __m512i a[16], b[16];
    const __mmask16 there = __mmask16((1u << columns) - 1u);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        a[i] = i < rows ? _mm512_maskz_loadu_epi32(there, from + i * stride) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    }
    for (int i = 0; i < columns; i++) _mm512_storeu_si512(to + i * to_stride, a[i]);
}

inline void transpose(const uint32_t *from, long stride, long rows, long columns, uint32_t *to, long to_stride) {
    for (long row = 0; row < rows; row += 16)
        for (long column = 0; column < columns; column += 16)
            transpose_16(from + row * stride + column, stride, std::min(rows - row, 16L),
                         std::min(columns - column, 16L), to + column * to_stride + row, to_stride);
}

// Rows [rows][width] as a right side over their width: [width / 2][QUERIES][2], zeros after the last row.
inline void as_columns(const bf16 *from, long stride, long rows, long width, bf16 *to) {
    transpose(reinterpret_cast<const uint32_t *>(from), stride / 2, rows, width / 2, reinterpret_cast<uint32_t *>(to),
              QUERIES);
    const long done = up(rows, 16);
    if (done < QUERIES)
        for (long pair = 0; pair < width / 2; pair++)
            std::memset(to + (pair * QUERIES + done) * 2, 0, size_t(QUERIES - done) * 4);
}

// Rows [rows][width] as a right side over the rows: [rows / 2][width][2], a zero after an odd last row.
inline void as_pairs(const bf16 *from, long stride, long rows, long width, bf16 *to) {
    alignas(64) static const uint16_t order[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                   8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i interleaved = _mm512_load_si512(order);
    for (long row = 0; row < rows; row += 2)
        for (long d = 0; d < width; d += 16) {
            const bf16 *here = from + row * stride + d;
            const __m512i even = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)here));
            const __m512i odd = row + 1 < rows
                                    ? _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(here + stride)))
                                    : _mm512_setzero_si512();
            _mm512_store_si512(to + (row * width + d * 2), _mm512_permutex2var_epi16(even, interleaved, odd));
        }
}

// Rows [rows][width] with rows and columns changed: [width][up(rows, 32)], zeros after the last row.
inline void as_transposed(const bf16 *from, long stride, long rows, long width, bf16 *to, bf16 *room) {
    const long padded = up(rows, 32);
    as_pairs(from, stride, rows, width, room);
    transpose(reinterpret_cast<const uint32_t *>(room), width, (rows + 1) / 2, width, reinterpret_cast<uint32_t *>(to),
              padded / 2);
}

// The sums of a tile in registers.
template <int R, int V> struct Tile {
    __m512 sums[R][V];

    inline void zero() {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = _mm512_setzero_ps();
    }
    inline void load(const float *from, long stride) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = _mm512_loadu_ps(from + r * stride + v * LANES);
    }
    inline void store(float *to, long stride) const {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) _mm512_storeu_ps(to + r * stride + v * LANES, sums[r][v]);
    }
    // Add left[R][k] right[k][V x 16] for k from 0 to before 2 x pairs.
    inline void add(const bf16 *left, long left_stride, const bf16 *right, long columns, long pairs) {
        for (long pair = 0; pair < pairs; pair++) {
            __m512bh b[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) b[v] = (__m512bh)_mm512_loadu_si512(right + (pair * columns + v * LANES) * 2);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int both;
                std::memcpy(&both, left + r * left_stride + pair * 2, 4);
                const __m512bh a = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], a, b[v]);
            }
        }
    }
};

// to[rows][V x 16] (+)= left[rows][2 x pairs] right, for up to ROWS rows.
template <int V, bool ADDS>
inline void product(const bf16 *left, long left_stride, const bf16 *right, long columns, long pairs, float *to,
                    long to_stride, long rows) {
    const auto make = [&](auto tile) {
        if (ADDS) tile.load(to, to_stride);
        else tile.zero();
        tile.add(left, left_stride, right, columns, pairs);
        tile.store(to, to_stride);
    };
    switch (rows) {
    case 6: return make(Tile<6, V>());
    case 5: return make(Tile<5, V>());
    case 4: return make(Tile<4, V>());
    case 3: return make(Tile<3, V>());
    case 2: return make(Tile<2, V>());
    case 1: return make(Tile<1, V>());
    }
}

template <bool ADDS>
inline void product(long vectors, const bf16 *left, long left_stride, const bf16 *right, long columns, long pairs,
                    float *to, long to_stride, long rows) {
    switch (vectors) {
    case 4: return product<4, ADDS>(left, left_stride, right, columns, pairs, to, to_stride, rows);
    case 3: return product<3, ADDS>(left, left_stride, right, columns, pairs, to, to_stride, rows);
    case 2: return product<2, ADDS>(left, left_stride, right, columns, pairs, to, to_stride, rows);
    case 1: return product<1, ADDS>(left, left_stride, right, columns, pairs, to, to_stride, rows);
    }
}

// to[rows][QUERIES] (+)= left[rows][count] right, a table of left sides and all columns of a block.
template <bool ADDS>
inline void products(const bf16 *left, long stride, const bf16 *right, long count, float *to, long rows) {
    for (long row = 0; row < rows; row += ROWS)
        product<VECTORS, ADDS>(left + row * stride, stride, right, QUERIES, (count + 1) / 2, to + row * QUERIES,
                               QUERIES, std::min(ROWS, rows - row));
}

// to[query][d] = sums[d][query] times its factor
inline void write_turned(const float *sums, long width, const __m512 *factor, long count, bf16 *to, long stride,
                         bf16 *room) {
    for (long d = 0; d < width; d += 2)
        for (int v = 0; v < VECTORS; v++) {
            const float *here = sums + d * QUERIES + v * LANES;
            const __m512 even = _mm512_mul_ps(_mm512_load_ps(here), factor[v]);
            const __m512 odd = _mm512_mul_ps(_mm512_load_ps(here + QUERIES), factor[v]);
            _mm512_store_si512(room + (d / 2 * QUERIES + v * LANES) * 2, pair_up(even, odd));
        }
    uint32_t *rows = reinterpret_cast<uint32_t *>(to);
    const uint32_t *from = reinterpret_cast<const uint32_t *>(room);
    for (long q = 0; q < count; q += 16)
        for (long pair = 0; pair < width / 2; pair += 16)
            transpose_16(from + pair * QUERIES + q, QUERIES, std::min(16L, width / 2 - pair), std::min(16L, count - q),
                         rows + q * (stride / 2) + pair, stride / 2);
}

struct Strides {
    long batch, head, token;
};

struct States {  // of queries or keys, [B, H, T, D]
    const bf16 *at;
    Strides stride;
    inline const bf16 *of(long batch, long head, long token) const {
        return at + batch * stride.batch + head * stride.head + token * stride.token;
    }
};

struct Shape {
    long heads, key_heads, queries, keys, width;  // queries and keys of a row of the batch
    inline long group() const { return heads / key_heads; }
};

struct Attend {
    float scale;
    long left, right;  // keys that a query sees before and after its own place, -1 for all
};

struct Span {
    int64_t row, first_query, end_query, first_key, end_key;
    inline long queries() const { return long(end_query - first_query); }
    inline long keys() const { return long(end_key - first_key); }
};

// Queries of a block and the keys that any of them sees, counted within the example.
struct Block {
    long first, count, low, high;
    const Attend &attend;

    Block(const Span &span, long first, const Attend &attend)
        : first(first), count(std::min(QUERIES, span.queries() - first)), attend(attend) {
        low = attend.left < 0 ? 0 : std::max(0L, first - attend.left);
        high = attend.right < 0 ? span.keys() : std::min(span.keys(), first + count + attend.right);
        low = std::min(low, high) & ~1L;  // pairs of keys
    }
    // Which of the block's queries see a key, a bit for each.
    inline uint64_t seen(long key) const {
        const long from = attend.right < 0 ? 0 : std::max(0L, key - attend.right - first);
        const long to = attend.left < 0 ? count : std::min(count, key + attend.left + 1 - first);
        if (from >= to) return 0;
        return (~uint64_t(0) >> (64 - (to - from))) << from;
    }
    // The vectors of columns that see any key of a tile.
    inline void vectors(long key, long rows, long &begin, long &end) const {
        uint64_t any = 0;
        for (long r = 0; r < rows; r++) any |= seen(key + r);
        if (!any) {
            begin = end = 0;
            return;
        }
        begin = __builtin_ctzll(any) / LANES;
        end = (63 - __builtin_clzll(any)) / LANES + 1;
    }
};

inline __mmask16 lane(uint64_t bits, long vector) { return __mmask16(bits >> (vector * LANES)); }

// e^x of numbers.h, less two of its terms (2e-6 of the result), which bf16 does not show; about 0 below -104.
inline __m512 exponential_16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // in this order NaN stays NaN
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(8.3334519073e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// What both passes read.
struct Inputs {
    Shape shape;
    Attend attend;
    States query, key, value;
};

inline States states(const void *at, const int64_t *strides) {
    return {static_cast<const bf16 *>(at), {strides[0], strides[1], strides[2]}};
}

// `sizes` are query heads, key heads, queries, keys and width; `strides` the batch's, head's and token's of each input.
inline Inputs inputs(const void *query, const void *key, const void *value, const int64_t *strides,
                     const int64_t *sizes, Attend attend) {
    return {{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]},
            attend,
            states(query, strides),
            states(key, strides + 3),
            states(value, strides + 6)};
}

struct Forward : Inputs {
    bf16 *out;        // [B, T, H, D]
    float *log_sums;  // [B, T, H]

    size_t bytes(long) const {
        return size_t(QUERIES * shape.width * 2 + KEYS * QUERIES * (4 + 2) + shape.width * QUERIES * (4 + 2) +
                      KEYS * shape.width * 4 + 4096);
    }

    void task(const Span &span, long key_head, Room &room) const {
        const long width = shape.width;
        bf16 *columns = room.take<bf16>(QUERIES * width);
        float *scores = room.take<float>(KEYS * QUERIES);
        bf16 *shares = room.take<bf16>(KEYS * QUERIES);
        float *sums = room.take<float>(width * QUERIES);
        bf16 *values = room.take<bf16>(KEYS * width);
        bf16 *pairs = room.take<bf16>(KEYS * width);
        long turned_from = -1;
        for (long head = key_head * shape.group(); head < (key_head + 1) * shape.group(); head++)
            for (long first = 0; first < span.queries(); first += QUERIES) {
                const Block block(span, first, attend);
                as_columns(query.of(span.row, head, span.first_query + first), query.stride.token, block.count, width,
                           columns);
                __m512 largest[VECTORS], total[VECTORS];
                for (int v = 0; v < VECTORS; v++) largest[v] = _mm512_set1_ps(-3.0e38f), total[v] = _mm512_setzero_ps();
                std::fill(sums, sums + width * QUERIES, 0.0f);
                for (long base = block.low / KEYS * KEYS; base < block.high; base += KEYS) {
                    const long from = std::max(base, block.low), to = std::min(base + KEYS, block.high);
                    const long there = std::min(KEYS, span.keys() - base);
                    if (base != turned_from)
                        as_transposed(value.of(span.row, key_head, span.first_key + base), value.stride.token, there,
                                      width, values, pairs);
                    turned_from = base;
                    __m512 before[VECTORS];
                    for (int v = 0; v < VECTORS; v++) before[v] = largest[v];
                    score(span, key_head, block, from, to, columns, scores, largest);
                    if (base > block.low) rescale(sums, width, before, largest, total);
                    exponentials(block, from, to, scores, shares, largest, total);
                    products<true>(values + from - base, up(there, 32), shares, to - from, sums, width);
                }
                finish(span, head, block, sums, largest, total, pairs);
            }
    }

    // scores[key - from][query], scaled, and the largest so far.
    void score(const Span &span, long key_head, const Block &block, long from, long high, const bf16 *columns,
               float *scores, __m512 *largest) const {
        const __m512 scale = _mm512_set1_ps(attend.scale);
        for (long k = from; k < high; k += ROWS) {
            const long rows = std::min(ROWS, high - k);
            long begin, end;
            block.vectors(k, rows, begin, end);
            if (begin == end) continue;
            float *to = scores + (k - from) * QUERIES + begin * LANES;
            product<false>(end - begin, key.of(span.row, key_head, span.first_key + k), key.stride.token,
                           columns + begin * LANES * 2, QUERIES, shape.width / 2, to, QUERIES, rows);
            for (long r = 0; r < rows; r++) {
                const uint64_t seen = block.seen(k + r);
                for (long v = begin; v < end; v++) {
                    float *here = scores + (k - from + r) * QUERIES + v * LANES;
                    largest[v] = _mm512_mask_max_ps(largest[v], lane(seen, v), largest[v],
                                                    _mm512_mul_ps(_mm512_load_ps(here), scale));
                }
            }
        }
    }

    void rescale(float *sums, long width, const __m512 *before, const __m512 *largest, __m512 *total) const {
        __m512 factor[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            factor[v] = exponential_16(_mm512_sub_ps(before[v], largest[v]));
            total[v] = _mm512_mul_ps(total[v], factor[v]);
        }
        for (long d = 0; d < width; d++)
            for (int v = 0; v < VECTORS; v++) {
                float *here = sums + d * QUERIES + v * LANES;
                _mm512_store_ps(here, _mm512_mul_ps(_mm512_load_ps(here), factor[v]));
            }
    }

    // shares = e^(scores - largest) as a right side over the keys, and their sums.
    void exponentials(const Block &block, long from, long high, const float *scores, bf16 *shares,
                      const __m512 *largest, __m512 *total) const {
        const __m512 scale = _mm512_set1_ps(attend.scale);
        for (long k = from; k < high; k += 2) {
            const uint64_t seen = block.seen(k), seen_next = k + 1 < high ? block.seen(k + 1) : 0;
            const float *here = scores + (k - from) * QUERIES;
            bf16 *to = shares + (k - from) * QUERIES;
            for (long v = 0; v < VECTORS; v++) {
                __m512 even = _mm512_setzero_ps(), odd = even;
                if (const __mmask16 mask = lane(seen, v))
                    even = _mm512_maskz_mov_ps(
                        mask, exponential_16(_mm512_fmsub_ps(_mm512_load_ps(here + v * LANES), scale, largest[v])));
                if (const __mmask16 mask = lane(seen_next, v))
                    odd = _mm512_maskz_mov_ps(
                        mask,
                        exponential_16(_mm512_fmsub_ps(_mm512_load_ps(here + QUERIES + v * LANES), scale, largest[v])));
                total[v] = _mm512_add_ps(total[v], _mm512_add_ps(even, odd));
                _mm512_store_si512(to + v * LANES * 2, pair_up(even, odd));
            }
        }
    }

    // What the sums are worth by their totals, and the logarithms of these.
    void finish(const Span &span, long head, const Block &block, const float *sums, const __m512 *largest,
                const __m512 *total, bf16 *room) const {
        const long width = shape.width;
        alignas(64) float logs[QUERIES], sum[QUERIES];
        __m512 inverse[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            inverse[v] = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(total[v], _mm512_setzero_ps(), _CMP_GT_OQ),
                                             _mm512_set1_ps(1.0f), total[v]);
            _mm512_store_ps(logs + v * LANES, largest[v]);
            _mm512_store_ps(sum + v * LANES, total[v]);
        }
        const long token = span.row * shape.queries + span.first_query + block.first;
        for (long q = 0; q < block.count; q++)
            log_sums[(token + q) * shape.heads + head] = sum[q] > 0 ? logs[q] + std::log(sum[q]) : 3.0e38f;
        write_turned(sums, width, inverse, block.count, out + (token * shape.heads + head) * width, shape.heads * width,
                     room);
    }
};

struct Backward : Inputs {
    States output, above;
    const float *log_sums;
    bf16 *grad_query, *grad_key, *grad_value;  // [B, T, heads, D]

    size_t bytes(long keys) const {
        const long width = shape.width, padded = up(keys, 32);
        return size_t(4 * QUERIES * width * 2 + padded * QUERIES * 2 + padded * width * (4 + 4 + 2 + 2) +
                      width * QUERIES * 8 + 8192);
    }

    void task(const Span &span, long key_head, Room &room) const {
        const long width = shape.width, keys = span.keys(), padded = up(keys, 32);
        bf16 *query_columns = room.take<bf16>(QUERIES * width), *above_columns = room.take<bf16>(QUERIES * width);
        bf16 *query_pairs = room.take<bf16>(QUERIES * width), *above_pairs = room.take<bf16>(QUERIES * width);
        bf16 *errors = room.take<bf16>(padded * QUERIES);
        float *key_sums = room.take<float>(padded * width), *value_sums = room.take<float>(padded * width);
        bf16 *keys_turned = room.take<bf16>(padded * width), *pairs = room.take<bf16>(padded * width);
        float *query_sums = room.take<float>(width * QUERIES);
        bf16 *turned = room.take<bf16>(width * QUERIES);
        as_transposed(key.of(span.row, key_head, span.first_key), key.stride.token, keys, width, keys_turned, pairs);
        std::fill(key_sums, key_sums + keys * width, 0.0f);
        std::fill(value_sums, value_sums + keys * width, 0.0f);
        __m512 scale[VECTORS];
        for (int v = 0; v < VECTORS; v++) scale[v] = _mm512_set1_ps(attend.scale);
        for (long head = key_head * shape.group(); head < (key_head + 1) * shape.group(); head++)
            for (long first = 0; first < span.queries(); first += QUERIES) {
                const Block block(span, first, attend);
                const bf16 *queries = query.of(span.row, head, span.first_query + first);
                const bf16 *aboves = above.of(span.row, head, span.first_query + first);
                as_columns(queries, query.stride.token, block.count, width, query_columns);
                as_columns(aboves, above.stride.token, block.count, width, above_columns);
                as_pairs(queries, query.stride.token, block.count, width, query_pairs);
                as_pairs(aboves, above.stride.token, block.count, width, above_pairs);
                through(span, key_head, head, block, query_columns, above_columns, query_pairs, above_pairs, errors,
                        key_sums, value_sums);
                const long count = block.high - block.low;
                products<false>(keys_turned + block.low, padded, errors, count, query_sums, width);
                const long token = span.row * shape.queries + span.first_query + first;
                write_turned(query_sums, width, scale, block.count, grad_query + (token * shape.heads + head) * width,
                             shape.heads * width, turned);
            }
        const long token = span.row * shape.keys + span.first_key, stride = shape.key_heads * width;
        write(key_sums, keys, width, attend.scale, grad_key + token * stride + key_head * width, stride);
        write(value_sums, keys, width, 1.0f, grad_value + token * stride + key_head * width, stride);
    }

    // Probabilities and errors of a block, tile by tile, into the sums of keys and values; errors also as a right side.
    void through(const Span &span, long key_head, long head, const Block &block, const bf16 *query_columns,
                 const bf16 *above_columns, const bf16 *query_pairs, const bf16 *above_pairs, bf16 *errors,
                 float *key_sums, float *value_sums) const {
        const long width = shape.width;
        alignas(64) float scores[ROWS * QUERIES], slopes[ROWS * QUERIES], logs[QUERIES] = {}, dots[QUERIES] = {};
        alignas(64) bf16 left_shares[ROWS * QUERIES], left_errors[ROWS * QUERIES];
        const long token = span.row * shape.queries + span.first_query + block.first;
        for (long q = 0; q < block.count; q++) {
            logs[q] = log_sums[(token + q) * shape.heads + head];
            const bf16 *o = output.of(span.row, head, span.first_query + block.first + q),
                       *a = above.of(span.row, head, span.first_query + block.first + q);
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (long d = 0; d < width; d++) dot += load(o[d]) * load(a[d]);
            dots[q] = dot;
        }
        const __m512 scale = _mm512_set1_ps(attend.scale);
        for (long k = block.low; k < block.high; k += ROWS) {
            const long rows = std::min(ROWS, block.high - k);
            long begin, end;
            block.vectors(k, rows, begin, end);
            bf16 *to = errors + (k - block.low) * QUERIES;
            if (begin < end) {
                const long at = begin * LANES;
                product<false>(end - begin, key.of(span.row, key_head, span.first_key + k), key.stride.token,
                               query_columns + at * 2, QUERIES, width / 2, scores + at, QUERIES, rows);
                product<false>(end - begin, value.of(span.row, key_head, span.first_key + k), value.stride.token,
                               above_columns + at * 2, QUERIES, width / 2, slopes + at, QUERIES, rows);
            }
            for (long r = 0; r < rows; r += 2) {
                const uint64_t seen[2] = {block.seen(k + r), r + 1 < rows ? block.seen(k + r + 1) : 0};
                for (long v = 0; v < VECTORS; v++) {
                    __m512 error[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, share[2] = {error[0], error[0]};
                    if (v >= begin && v < end)
                        for (int i = 0; i < 2; i++) {
                            const __mmask16 mask = lane(seen[i], v);
                            if (!mask) continue;
                            const long here = (r + i) * QUERIES + v * LANES;
                            share[i] = _mm512_maskz_mov_ps(
                                mask, exponential_16(_mm512_fmsub_ps(_mm512_load_ps(scores + here), scale,
                                                                     _mm512_load_ps(logs + v * LANES))));
                            error[i] = _mm512_maskz_mul_ps(
                                mask, share[i],
                                _mm512_sub_ps(_mm512_load_ps(slopes + here), _mm512_load_ps(dots + v * LANES)));
                        }
                    _mm512_store_si512(to + (r * QUERIES + v * LANES * 2), pair_up(error[0], error[1]));
                    for (int i = 0; i < 2; i++) {
                        _mm256_store_si256((__m256i *)(left_shares + (r + i) * QUERIES + v * LANES),
                                           (__m256i)_mm512_cvtneps_pbh(share[i]));
                        _mm256_store_si256((__m256i *)(left_errors + (r + i) * QUERIES + v * LANES),
                                           (__m256i)_mm512_cvtneps_pbh(error[i]));
                    }
                }
            }
            if (begin == end) continue;
            const long at = begin * LANES, pairs = (std::min(end * LANES, block.count) - at + 1) / 2;
            for (long d = 0; d < width; d += QUERIES) {
                const long vectors = std::min(VECTORS, (width - d) / LANES);
                product<true>(vectors, left_shares + at, QUERIES, above_pairs + at * width + d * 2, width, pairs,
                              value_sums + k * width + d, width, rows);
                product<true>(vectors, left_errors + at, QUERIES, query_pairs + at * width + d * 2, width, pairs,
                              key_sums + k * width + d, width, rows);
            }
        }
    }

    static void write(const float *sums, long rows, long width, float factor, bf16 *to, long stride) {
        for (long row = 0; row < rows; row++)
#pragma omp simd
            for (long d = 0; d < width; d++) store(to[row * stride + d], sums[row * width + d] * factor);
    }
};

// All tasks of a pass, the largest first, so that threads end together.
template <class Pass> void every(const Pass &pass, const int64_t *rows, long count, int threads) {
    std::vector<Span> spans;
    for (const int64_t *at = rows; at < rows + count * 5; at += 5)
        if (at[1] < at[2] && at[3] < at[4]) spans.push_back({at[0], at[1], at[2], at[3], at[4]});
    std::stable_sort(spans.begin(), spans.end(), [](const Span &one, const Span &other) {
        return one.queries() * one.keys() > other.queries() * other.keys();
    });
    const long tasks = long(spans.size()) * pass.shape.key_heads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        static thread_local Room room;
#pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < tasks; task++) {
            const Span &span = spans[size_t(task / pass.shape.key_heads)];
            room.reserve(pass.bytes(span.keys()));
            pass.task(span, task % pass.shape.key_heads, room);
        }
    }
}

}  // namespace

// Strides and sizes are as `inputs` takes them; those of the output and its gradient follow.
extern "C" void attention(const void *query, const void *key, const void *value, const int64_t *strides,
                          const int64_t *spans, const int64_t *sizes, long count, float scale, long left, long right,
                          bf16 *out, float *log_sums, int threads) {
    const Inputs read = inputs(query, key, value, strides, sizes, {scale, left, right});
    every(Forward{read, out, log_sums}, spans, count, threads);
}

extern "C" void attention_backward(const void *query, const void *key, const void *value, const void *output,
                                   const void *above, const int64_t *strides, const int64_t *spans,
                                   const int64_t *sizes, long count, float scale, long left, long right,
                                   const float *log_sums, bf16 *grad_query, bf16 *grad_key, bf16 *grad_value,
                                   int threads) {
    const Inputs read = inputs(query, key, value, strides, sizes, {scale, left, right});
    every(Backward{read, states(output, strides + 9), states(above, strides + 12), log_sums, grad_query, grad_key,
                   grad_value},
          spans, count, threads);
}

#endif
