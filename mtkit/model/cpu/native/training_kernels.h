/* Operations of training for one set of instructions. `each_simd.h` includes this file once for each. */

#include "exponential.h"

#if LANES == 16
#define vload_bf16(p) \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
/* x, or 0 where the random byte at p is below the threshold */
#define vkeep(p, threshold, x) \
    _mm512_maskz_mov_ps(_mm_cmpge_epu8_mask(_mm_loadu_si128((const __m128i *)(p)), _mm_set1_epi8((char)(threshold))), x)
/* x where the float `condition` is not 0, else y */
#define vselect(condition, x, y) _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(condition, _mm512_setzero_ps(), _CMP_NEQ_UQ), x)
#else
#define vselect(condition, x, y) _mm256_blendv_ps(y, x, _mm256_cmp_ps(condition, _mm256_setzero_ps(), _CMP_NEQ_UQ))
#define vload_bf16(p) \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#define vkeep(p, threshold, x)                                                                                    \
    _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)(threshold)),                  \
                                                            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p))))), \
                     x)
#endif

/* Write bfloat16, rounded to nearest even. NaN stays NaN. */
static inline __attribute__((always_inline)) void NAME(vstore_bf16)(uint16_t *p, V x) {
#if LANES == 16
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0))));
#else
    const __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
#endif
}

static inline __attribute__((always_inline)) V NAME(read)(const void *p, int64_t at, const int64_t bf16) {
    return bf16 ? vload_bf16((const uint16_t *)p + at) : vload((const float *)p + at);
}

static inline __attribute__((always_inline)) void NAME(write)(void *p, int64_t at, V x, const int64_t bf16) {
    if (bf16)
        NAME(vstore_bf16)((uint16_t *)p + at, x);
    else
        vstore((float *)p + at, x);
}

/* ---- products of small matrices ---- */

enum { NAME(ROWS) = LANES / 2 }; /* of a tile: with two vectors of columns, its sums fit into half of the registers */

/* The sums of a tile are variables of their own, because compilers keep arrays in memory. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define START(r) V x##r = vset(0), y##r = vset(0);
#define SUM(r)                                             \
    if (r < R) {                                           \
        const V each = vset(a[r * a_row + k * a_inner]);   \
        x##r = vfma(each, b0, x##r);                       \
        if (C == 2) y##r = vfma(each, b1, y##r);           \
    }
#define FINISH(r)                                                                                               \
    if (r < R) {                                                                                                \
        vstore(out + r * out_row, add ? vadd(vload(out + r * out_row), x##r) : x##r);                           \
        if (C == 2) vstore(out + r * out_row + LANES, add ? vadd(vload(out + r * out_row + LANES), y##r) : y##r); \
    }

static inline __attribute__((always_inline)) void NAME(tile)(const int R, const int C, int64_t inner, const float *a,
                                                             int64_t a_row, int64_t a_inner, const float *b, int64_t b_row,
                                                             float *out, int64_t out_row, const int add) {
    EACH_ROW(START)
    for (int64_t k = 0; k < inner; k++) {
        const V b0 = vload(b + k * b_row), b1 = C == 2 ? vload(b + k * b_row + LANES) : b0;
        EACH_ROW(SUM)
    }
    EACH_ROW(FINISH)
}
#undef EACH_ROW
#undef START
#undef SUM
#undef FINISH

/* out[r][c] = sum over k of a[r * a_row + k * a_inner] * b[k * b_row + c], or add that. columns: a multiple of LANES. */
static inline __attribute__((always_inline)) void NAME(product)(int64_t rows, int64_t inner, int64_t columns, const float *a,
                                                                int64_t a_row, int64_t a_inner, const float *b,
                                                                int64_t b_row, float *out, int64_t out_row, const int add) {
    for (int64_t c = 0; c < columns;) {
        const int pair = c + 2 * LANES <= columns;
        int64_t r = 0;
#define TILES(R)                                                                                                     \
    for (; r + R <= rows; r += R) {                                                                                  \
        if (pair)                                                                                                    \
            NAME(tile)(R, 2, inner, a + r * a_row, a_row, a_inner, b + c, b_row, out + r * out_row + c, out_row, add); \
        else                                                                                                         \
            NAME(tile)(R, 1, inner, a + r * a_row, a_row, a_inner, b + c, b_row, out + r * out_row + c, out_row, add); \
    }
#if LANES == 16
        TILES(8)
#endif
        TILES(4)
        TILES(2)
        TILES(1)
#undef TILES
        c += pair ? 2 * LANES : LANES;
    }
}

/* ---- attention ---- */

static inline const float *NAME(of_batch)(const void *base, int64_t bf16, int64_t elements) {
    return (const float *)((const char *)base + elements * (bf16 ? 2 : 4));
}

/* Read rows of a head as floats. */
static inline void NAME(read_head)(const void *from, int64_t bf16, int64_t rows, int64_t stride, int64_t width, float *to) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = 0; e < width; e += LANES) vstore(to + r * width + e, NAME(read)(from, r * stride + e, bf16));
}

static inline void NAME(write_head)(const float *from, int64_t bf16, int64_t rows, int64_t stride, int64_t width, void *to) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = 0; e < width; e += LANES) NAME(write)(to, r * stride + e, vload(from + r * width + e), bf16);
}

/* Write [rows][width] as [width][rows], both multiples of 8. */
static inline void NAME(transpose)(const float *from, int64_t rows, int64_t width, float *to) {
    for (int64_t r = 0; r < rows; r += 8)
        for (int64_t e = 0; e < width; e += 8) {
            __m256 x[8], y[8];
            for (int i = 0; i < 8; i++) x[i] = _mm256_loadu_ps(from + (r + i) * width + e);
            for (int i = 0; i < 8; i += 2) {
                y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
                y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
            }
            for (int i = 0; i < 8; i += 4)
                for (int j = 0; j < 2; j++) {
                    x[i + 2 * j] = _mm256_shuffle_ps(y[i + j], y[i + 2 + j], 0x44);
                    x[i + 2 * j + 1] = _mm256_shuffle_ps(y[i + j], y[i + 2 + j], 0xee);
                }
            for (int i = 0; i < 4; i++) {
                _mm256_storeu_ps(to + (e + i) * rows + r, _mm256_permute2f128_ps(x[i], x[i + 4], 0x20));
                _mm256_storeu_ps(to + (e + i + 4) * rows + r, _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
            }
        }
}

/* Bring the tokens of the next sentence into the cache: their heads are read one by one, which no CPU foresees. */
static inline void NAME(prefetch)(const void *base, int64_t bf16, int64_t first, int64_t count) {
    const char *at = (const char *)NAME(of_batch)(base, bf16, first);
    for (int64_t i = 0; i < count * (bf16 ? 2 : 4); i += 64) _mm_prefetch(at + i, _MM_HINT_T0);
}

/* Write 1 for each key that a query may attend to, and 0 for the others and the padding. */
static void NAME(read_mask)(const Attention *task, int64_t b, int64_t padded, float *allowed) {
    const int64_t rows = task->mask && task->mask_query ? task->queries : 1;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t s = 0; s < padded; s++)
            allowed[t * padded + s] =
                s < task->keys && (!task->mask || task->mask[b * task->mask_batch + t * task->mask_query + s]);
}

static inline __attribute__((always_inline)) void NAME(attend_as)(const Attention *task, float *work, const int64_t bf16) {
    const int64_t T = task->queries, S = task->keys, E = task->head_width, H = task->heads, G = task->kv_heads;
    const int64_t padded = PADDED(S), mask_row = task->mask && task->mask_query ? padded : 0;
    float *allowed = work, *q = allowed + T * padded, *k = q + T * E, *v = k + padded * E, *keys = v + padded * E;
    float *weights = keys + E * padded, *out = weights + T * padded;
    for (int64_t i = 0; i < 2 * E * padded; i++) k[i] = 0; /* rows of padding stay 0 */
    for (int64_t b = 0; b < task->batch; b++) {
        if (b + 1 < task->batch) {
            NAME(prefetch)(task->q, bf16, (b + 1) * T * task->q_stride, T * task->q_stride);
            NAME(prefetch)(task->k, bf16, (b + 1) * S * task->kv_stride, S * task->kv_stride);
        }
        if (b == 0 || task->mask_batch) NAME(read_mask)(task, b, padded, allowed);
        for (int64_t h = 0; h < H; h++) {
            const int64_t kv_at = b * S * task->kv_stride + h / (H / G) * E;
            NAME(read_head)(NAME(of_batch)(task->q, bf16, b * T * task->q_stride + h * E), bf16, T, task->q_stride, E, q);
            if (h % (H / G) == 0) {
                NAME(read_head)(NAME(of_batch)(task->k, bf16, kv_at), bf16, S, task->kv_stride, E, k);
                NAME(read_head)(NAME(of_batch)(task->v, bf16, kv_at), bf16, S, task->kv_stride, E, v);
                NAME(transpose)(k, padded, E, keys);
            }
            NAME(product)(T, E, padded, q, E, 1, keys, padded, weights, padded, 0);
            for (int64_t t = 0; t < T; t++) {
                float *row = weights + t * padded;
                const float *may = allowed + t * mask_row;
                const int64_t index = (b * H + h) * T + t;
                V most = vset(-INFINITY), sums = vset(0);
                for (int64_t s = 0; s < padded; s += LANES)
                    most = vmax(most, vselect(vload(may + s), vload(row + s), vset(-INFINITY)));
                const float highest = vmax_of(most) * task->scale;
                for (int64_t s = 0; s < padded; s += LANES) {
                    const V x = vsub(vmul(vload(row + s), vset(task->scale)), vset(highest));
                    const V e = vselect(vload(may + s), NAME(vexp)(x), vset(0));
                    vstore(row + s, e);
                    sums = vadd(sums, e);
                }
                const float sum = vsum(sums);
                const V factor = vset(task->keep_scale / sum);
                task->normalizers[index] = highest + logf(sum);
                if (task->bytes)
                    for (int64_t s = 0; s < padded; s += LANES)
                        vstore(row + s, vkeep(task->bytes + index * S + s, task->threshold, vmul(vload(row + s), factor)));
                else
                    for (int64_t s = 0; s < padded; s += LANES) vstore(row + s, vmul(vload(row + s), factor));
            }
            NAME(product)(T, S, E, weights, padded, 1, v, E, out, E, 0);
            NAME(write_head)(out, bf16, T, H * E, E, (void *)NAME(of_batch)(task->out, bf16, b * T * H * E + h * E));
        }
    }
}

/* The gradient of scores is w (g - sum of w g), where g is the gradient of a weight w (softmax). */
static inline __attribute__((always_inline)) void NAME(attend_backward_as)(const Attention *task, float *work,
                                                                           const int64_t bf16) {
    const int64_t T = task->queries, S = task->keys, E = task->head_width, H = task->heads, G = task->kv_heads;
    const int64_t padded = PADDED(S), mask_row = task->mask && task->mask_query ? padded : 0;
    float *allowed = work, *q = allowed + T * padded, *grad = q + T * E, *k = grad + T * E, *v = k + padded * E;
    float *keys = v + padded * E, *values = keys + E * padded, *weights = values + E * padded, *scores = weights + T * padded;
    float *q_grad = scores + T * padded, *k_grad = q_grad + T * E, *v_grad = k_grad + S * E;
    for (int64_t i = 0; i < 2 * E * padded; i++) k[i] = 0; /* rows of padding stay 0 */
    for (int64_t b = 0; b < task->batch; b++) {
        if (b + 1 < task->batch) {
            NAME(prefetch)(task->q, bf16, (b + 1) * T * task->q_stride, T * task->q_stride);
            NAME(prefetch)(task->k, bf16, (b + 1) * S * task->kv_stride, S * task->kv_stride);
            NAME(prefetch)(task->grad, bf16, (b + 1) * T * H * E, T * H * E);
        }
        if (b == 0 || task->mask_batch) NAME(read_mask)(task, b, padded, allowed);
        for (int64_t h = 0; h < H; h++) {
            const int64_t q_at = b * T * task->q_stride + h * E, kv_at = b * S * task->kv_stride + h / (H / G) * E;
            NAME(read_head)(NAME(of_batch)(task->q, bf16, q_at), bf16, T, task->q_stride, E, q);
            NAME(read_head)(NAME(of_batch)(task->grad, bf16, b * T * H * E + h * E), bf16, T, H * E, E, grad);
            if (h % (H / G) == 0) {
                NAME(read_head)(NAME(of_batch)(task->k, bf16, kv_at), bf16, S, task->kv_stride, E, k);
                NAME(read_head)(NAME(of_batch)(task->v, bf16, kv_at), bf16, S, task->kv_stride, E, v);
                NAME(transpose)(k, padded, E, keys);
                NAME(transpose)(v, padded, E, values);
                for (int64_t i = 0; i < 2 * S * E; i++) k_grad[i] = 0;
            }
            NAME(product)(T, E, padded, q, E, 1, keys, padded, weights, padded, 0);
            NAME(product)(T, E, padded, grad, E, 1, values, padded, scores, padded, 0);
            for (int64_t t = 0; t < T; t++) {
                float *row = weights + t * padded, *own = scores + t * padded;
                const float *may = allowed + t * mask_row;
                const int64_t index = (b * H + h) * T + t;
                const uint8_t *bytes = task->bytes ? task->bytes + index * S : NULL;
                V sums = vset(0);
                for (int64_t s = 0; s < padded; s += LANES) {
                    const V x = vsub(vmul(vload(row + s), vset(task->scale)), vset(task->normalizers[index]));
                    const V w = vselect(vload(may + s), NAME(vexp)(x), vset(0));
                    V g = vmul(vload(own + s), vset(task->keep_scale));
                    if (bytes) g = vkeep(bytes + s, task->threshold, g);
                    vstore(row + s, w);
                    vstore(own + s, g);
                    sums = vfma(w, g, sums);
                }
                const V all = vset(vsum(sums)), scale = vset(task->scale), keep_scale = vset(task->keep_scale);
                for (int64_t s = 0; s < padded; s += LANES) {
                    const V w = vload(row + s), kept = vmul(w, keep_scale);
                    vstore(own + s, vmul(vmul(w, vsub(vload(own + s), all)), scale));
                    vstore(row + s, bytes ? vkeep(bytes + s, task->threshold, kept) : kept);
                }
            }
            NAME(product)(S, T, E, weights, 1, padded, grad, E, v_grad, E, 1);
            NAME(product)(S, T, E, scores, 1, padded, q, E, k_grad, E, 1);
            NAME(product)(T, S, E, scores, padded, 1, k, E, q_grad, E, 0);
            NAME(write_head)(q_grad, bf16, T, task->q_stride, E, (void *)NAME(of_batch)(task->q_grad, bf16, q_at));
            if ((h + 1) % (H / G) == 0) {
                NAME(write_head)(k_grad, bf16, S, task->kv_stride, E, (void *)NAME(of_batch)(task->k_grad, bf16, kv_at));
                NAME(write_head)(v_grad, bf16, S, task->kv_stride, E, (void *)NAME(of_batch)(task->v_grad, bf16, kv_at));
            }
        }
    }
}

static void NAME(attend)(const Attention *task, float *work) {
    if (task->bf16)
        NAME(attend_as)(task, work, 1);
    else
        NAME(attend_as)(task, work, 0);
}

static void NAME(attend_backward)(const Attention *task, float *work) {
    if (task->bf16)
        NAME(attend_backward_as)(task, work, 1);
    else
        NAME(attend_backward_as)(task, work, 0);
}

/* ---- cross-entropy ---- */

/* Replace the logits of a row by the gradient of the label-smoothed cross-entropy, and add up loss and nll.
 *
 * padded: room for a row of floats.
 */
static inline __attribute__((always_inline)) void NAME(cross_entropy_row)(void *logits, int64_t vocabulary, int64_t target,
                                                                          float smoothing, float *padded, double *sums,
                                                                          const int64_t bf16) {
    const int64_t whole = vocabulary / LANES * LANES;
    V most = vset(-INFINITY), total = vset(0), exponentials = vset(0);
    for (int64_t i = 0; i < whole; i += LANES) {
        const V x = NAME(read)(logits, i, bf16);
        most = vmax(most, x);
        total = vadd(total, x);
        vstore(padded + i, x);
    }
    float rest = 0;
    for (int64_t i = whole; i < PADDED(vocabulary); i++) padded[i] = -INFINITY;
    for (int64_t i = whole; i < vocabulary; i++) {
        padded[i] = bf16 ? from_bf16(((const uint16_t *)logits)[i]) : ((const float *)logits)[i];
        rest += padded[i];
    }
    for (int64_t i = whole; i < PADDED(vocabulary); i += LANES) most = vmax(most, vload(padded + i));
    const float highest = vmax_of(most), own = padded[target];
    for (int64_t i = 0; i < PADDED(vocabulary); i += LANES) {
        const V e = NAME(vexp)(vsub(vload(padded + i), vset(highest)));
        vstore(padded + i, e);
        exponentials = vadd(exponentials, e);
    }
    const float sum = vsum(exponentials), normalizer = highest + logf(sum), uniform = smoothing / (float)vocabulary;
    const double nll = (double)normalizer - own, mean = ((double)vsum(total) + rest) / (double)vocabulary;
    sums[0] += (1 - (double)smoothing) * nll + (double)smoothing * (normalizer - mean);
    sums[1] += nll;
    padded[target] += (smoothing - 1) * sum;
    const V factor = vset(1 / sum);
    for (int64_t i = 0; i < whole; i += LANES)
        NAME(write)(logits, i, vsub(vmul(vload(padded + i), factor), vset(uniform)), bf16);
    for (int64_t i = whole; i < PADDED(vocabulary); i += LANES)
        vstore(padded + i, vsub(vmul(vload(padded + i), factor), vset(uniform)));
    if (bf16 && whole < vocabulary) {
        uint16_t last[PADDED(1)];
        for (int64_t i = whole; i < PADDED(vocabulary); i += LANES) NAME(vstore_bf16)(last + i - whole, vload(padded + i));
        memcpy((uint16_t *)logits + whole, last, (size_t)(vocabulary - whole) * sizeof(uint16_t));
    } else if (whole < vocabulary) {
        memcpy((float *)logits + whole, padded + whole, (size_t)(vocabulary - whole) * sizeof(float));
    }
}

static void NAME(cross_entropy)(void *logits, int64_t bf16, int64_t rows, int64_t vocabulary, const int64_t *targets,
                                float smoothing, float *padded, double *sums) {
    for (int64_t r = 0; r < rows; r++) {
        if (bf16)
            NAME(cross_entropy_row)((uint16_t *)logits + r * vocabulary, vocabulary, targets[r], smoothing, padded, sums, 1);
        else
            NAME(cross_entropy_row)((float *)logits + r * vocabulary, vocabulary, targets[r], smoothing, padded, sums, 0);
    }
}

/* ---- dropout ---- */

static inline __attribute__((always_inline)) void NAME(drop_as)(const float *residual, const void *x, const int64_t x_bf16,
                                                                const uint8_t *bytes, int64_t threshold, float scale,
                                                                int64_t count, void *out, const int64_t out_bf16) {
    for (int64_t i = 0; i < count; i += LANES) {
        const V kept = vkeep(bytes + i, threshold, vmul(NAME(read)(x, i, x_bf16), vset(scale)));
        NAME(write)(out, i, residual ? vadd(vload(residual + i), kept) : kept, out_bf16);
    }
}

/* out = dropout(x), or residual + dropout(x). count: a multiple of 16. */
static void NAME(drop)(const float *residual, const void *x, int64_t x_bf16, const uint8_t *bytes, int64_t threshold,
                       float scale, int64_t count, void *out, int64_t out_bf16) {
    if (x_bf16 && out_bf16)
        NAME(drop_as)(residual, x, 1, bytes, threshold, scale, count, out, 1);
    else if (x_bf16)
        NAME(drop_as)(residual, x, 1, bytes, threshold, scale, count, out, 0);
    else if (out_bf16)
        NAME(drop_as)(residual, x, 0, bytes, threshold, scale, count, out, 1);
    else
        NAME(drop_as)(residual, x, 0, bytes, threshold, scale, count, out, 0);
}

/* ---- norms ---- */

static inline __attribute__((always_inline)) void NAME(norm_as)(const NormTask *task, const int64_t bf16) {
    const int64_t D = task->width;
    for (int64_t r = 0; r < task->rows; r++) {
        const float *x = task->x + r * D;
        float mean = 0;
        if (task->centered) {
            V sum = vset(0);
            for (int64_t i = 0; i < D; i += LANES) sum = vadd(sum, vload(x + i));
            mean = vsum(sum) / (float)D;
        }
        V squares = vset(0);
        for (int64_t i = 0; i < D; i += LANES) {
            const V centered = vsub(vload(x + i), vset(mean));
            squares = vfma(centered, centered, squares);
        }
        const float inverse = 1 / sqrtf(vsum(squares) / (float)D + task->epsilon);
        task->statistics[2 * r] = mean, task->statistics[2 * r + 1] = inverse;
        for (int64_t i = 0; i < D; i += LANES) {
            V y = vmul(vmul(vsub(vload(x + i), vset(mean)), vset(inverse)), vload(task->gain + i));
            if (task->bias) y = vadd(y, vload(task->bias + i));
            NAME(write)(task->out, r * D + i, y, bf16);
        }
    }
}

/* The gradient of x is (g - mean of g - y * mean of g y) / deviation, where y is normalized and g the gradient of y. */
static inline __attribute__((always_inline)) void NAME(norm_backward_as)(const NormTask *task, const int64_t bf16) {
    const int64_t D = task->width;
    for (int64_t r = 0; r < task->rows; r++) {
        const float *x = task->x + r * D;
        const V mean = vset(task->statistics[2 * r]), inverse = vset(task->statistics[2 * r + 1]);
        V sum = vset(0), products = vset(0);
        for (int64_t i = 0; i < D; i += LANES) {
            const V y = vmul(vsub(vload(x + i), mean), inverse), out_grad = NAME(read)(task->grad, r * D + i, bf16);
            const V g = vmul(out_grad, vload(task->gain + i));
            sum = vadd(sum, g);
            products = vfma(g, y, products);
            vstore(task->gain_grad + i, vfma(out_grad, y, vload(task->gain_grad + i)));
            if (task->bias_grad) vstore(task->bias_grad + i, vadd(out_grad, vload(task->bias_grad + i)));
        }
        const V average = vset(task->centered ? vsum(sum) / (float)D : 0), slope = vset(vsum(products) / (float)D);
        for (int64_t i = 0; i < D; i += LANES) {
            const V y = vmul(vsub(vload(x + i), mean), inverse);
            const V g = vmul(NAME(read)(task->grad, r * D + i, bf16), vload(task->gain + i));
            vstore(task->x_grad + r * D + i, vmul(vsub(vsub(g, average), vmul(y, slope)), inverse));
        }
    }
}

static void NAME(norm)(const NormTask *task) {
    if (task->bf16)
        NAME(norm_as)(task, 1);
    else
        NAME(norm_as)(task, 0);
}

static void NAME(norm_backward)(const NormTask *task) {
    if (task->bf16)
        NAME(norm_backward_as)(task, 1);
    else
        NAME(norm_backward_as)(task, 0);
}

static const Kernels NAME(kernels) = {NAME(attend), NAME(attend_backward), NAME(cross_entropy), NAME(drop), NAME(norm),
                                      NAME(norm_backward)};

#undef vload_bf16
#undef vkeep
#undef vselect
#include "simd_end.h"
