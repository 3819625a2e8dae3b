/* The encoder and the decoder for one set of instructions. `each_simd.h` includes this file once for each.
 *
 * No result of a row depends on other rows: each sum has its own fixed order, whatever the tile it is computed in.
 */

#include "exponential.h"

/* ---- matrix products ---- */

enum { NAME(PANEL) = 2 * LANES };

/* Write what a row of a tile has summed. */
static inline __attribute__((always_inline)) void NAME(finish)(V a, V b, const float *bias, int mode, float keep, float *out) {
    if (bias) a = vadd(a, vload(bias)), b = vadd(b, vload(bias + LANES));
    if (mode == ADD) a = vfma(vset(keep), vload(out), a), b = vfma(vset(keep), vload(out + LANES), b);
    if (mode == RECTIFY) a = vmax(a, vset(0)), b = vmax(b, vset(0));
    vstore(out, a);
    vstore(out + LANES, b);
}

/* The sums of a tile are variables of their own, because compilers keep arrays in memory: EACH_ROW repeats what is done
 * with those of one row, for rows up to R.
 */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define FINISH(r)                                                                           \
    if (r < R) NAME(finish)(a##r, b##r, bias, mode, keep, out + r * stride);

static inline __attribute__((always_inline)) void NAME(float_tile)(const int R, const float *x, int64_t inputs, const float *w,
                                                                   const float *bias, int mode, float keep, float *out,
                                                                   int64_t stride) {
#define START(r) V a##r = vset(0), b##r = vset(0);
#define SUM(r)                                                          \
    if (r < R) {                                                        \
        V each = vset(x[r * inputs + i]);                               \
        a##r = vfma(each, w0, a##r), b##r = vfma(each, w1, b##r);       \
    }
    EACH_ROW(START)
    for (int64_t i = 0; i < inputs; i++, w += NAME(PANEL)) {
        V w0 = vload(w), w1 = vload(w + LANES);
        EACH_ROW(SUM)
    }
    EACH_ROW(FINISH)
#undef START
#undef SUM
}

static inline __attribute__((always_inline)) void NAME(int8_tile)(const int R, const uint8_t *x, const float *x_scales,
                                                                  int64_t inputs, const int8_t *w, const float *scales,
                                                                  const int32_t *starts, const float *bias, int mode,
                                                                  float keep, float *out, int64_t stride) {
    const VI start0 = viload(starts), start1 = viload(starts + LANES);
#define START(r) VI i##r = start0, j##r = start1;
#define SUM(r)                                                          \
    if (r < R) {                                                        \
        VI each = viinput(x + r * inputs + i);                          \
        vidot(i##r, each, w0);                                          \
        vidot(j##r, each, w1);                                          \
    }
#define SCALE(r)                                                        \
    V a##r, b##r;                                                       \
    if (r < R) {                                                        \
        const V row = vset(x_scales[r]);                                \
        a##r = vmul(vifloat(i##r), vmul(row, s0));                      \
        b##r = vmul(vifloat(j##r), vmul(row, s1));                      \
    }
    EACH_ROW(START)
    for (int64_t i = 0; i < inputs; i += GROUP, w += NAME(PANEL) * GROUP) {
        VI w0 = viload(w), w1 = viload(w + LANES * GROUP);
        EACH_ROW(SUM)
    }
    const V s0 = vload(scales), s1 = vload(scales + LANES);
    EACH_ROW(SCALE)
    EACH_ROW(FINISH)
#undef START
#undef SUM
#undef SCALE
}
#undef FINISH
#undef EACH_ROW

/* Round rows to bytes, each with a scale of its own: from 1 to 2 INPUT_ZERO - 1, where INPUT_ZERO stands for 0.
 *
 * A row with NaN or infinity gets NaN as its scale, so that its results are NaN too. */
static void NAME(round_rows)(const float *x, int64_t rows, int64_t inputs, uint8_t *rounded, float *scales) {
    for (int64_t r = 0; r < rows; r++, x += inputs, rounded += inputs) {
        V most = vset(0), invalid = vset(0);
        for (int64_t i = 0; i < inputs; i += LANES) {
            const V loaded = vload(x + i);
            most = vmax(most, vabs(loaded));
            invalid = vfma(loaded, vset(0), invalid);
        }
        float scale = vmax_of(most);
        scale = (scale > 1e-12f ? scale : 1e-12f) * (1.0f / (INPUT_ZERO - 1));
        V inverse = vset(1.0f / scale);
        for (int64_t i = 0; i < inputs; i += LANES) vistore_rounded(rounded + i, vmul(vload(x + i), inverse));
        scales[r] = scale + vsum(invalid);
    }
}

/* Multiply rows by the outputs [first, last) of a linear layer; `out` begins with output `first`.
 *
 * x: [rows][inputs], rounded to bytes with `x_scales` if the layer is one of integers.
 */
static void NAME(multiply)(const Linear *layer, const void *x, const float *x_scales, int64_t rows, int64_t first,
                           int64_t last, float *out, int64_t stride, int mode, float keep) {
    const int64_t inputs = layer->inputs;
    for (int64_t panel = first; panel < last; panel += NAME(PANEL)) {
        const float *bias = layer->bias ? layer->bias + panel : NULL;
        float *to = out + panel - first;
        int64_t r = 0;
#define TILES(R)                                                                                                        \
    for (; r + R <= rows; r += R) {                                                                                     \
        if (layer->scales)                                                                                              \
            NAME(int8_tile)(R, (const uint8_t *)x + r * inputs, x_scales + r, inputs,                                   \
                            (const int8_t *)layer->weight + panel * inputs, layer->scales + panel,                      \
                            layer->starts + panel, bias, mode, keep, to + r * stride, stride);                          \
        else                                                                                                            \
            NAME(float_tile)(R, (const float *)x + r * inputs, inputs, (const float *)layer->weight + panel * inputs,   \
                             bias, mode, keep, to + r * stride, stride);                                                \
    }
        TILES(MAX_ROWS)
        TILES(4)
        TILES(2)
        TILES(1)
#undef TILES
    }
}

/* Apply a linear layer: out [rows][stride]. `rounded` is room for the rounded input. */
static void NAME(linear)(const Linear *layer, const float *x, int64_t rows, float *out, int mode, float keep, float *rounded) {
    const void *input = x;
    if (layer->scales) {
        NAME(round_rows)(x, rows, layer->inputs, (uint8_t *)(rounded + PADDED(rows)), rounded);
        input = rounded + PADDED(rows);
    }
    NAME(multiply)(layer, input, rounded, rows, 0, layer->outputs, out, layer->outputs, mode, keep);
}

/* ---- norms and activations ---- */

static void NAME(norm)(const Norm *norm, const Stack *stack, const float *x, int64_t rows, float *out) {
    const int64_t width = stack->true_width, whole = width / LANES * LANES, padded = stack->width;
    for (int64_t r = 0; r < rows; r++, x += padded, out += padded) {
        float mean = 0;
        if (norm->bias) {
            V sum = vset(0);
            for (int64_t i = 0; i < padded; i += LANES) sum = vadd(sum, vload(x + i));
            mean = vsum(sum) / (float)width;
        }
        V squares = vset(0), center = vset(mean);
        for (int64_t i = 0; i < whole; i += LANES) {
            V d = vsub(vload(x + i), center);
            squares = vfma(d, d, squares);
        }
        float variance = vsum(squares);
        for (int64_t i = whole; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
        V factor = vset(1.0f / sqrtf(variance / (float)width + stack->epsilon));
        for (int64_t i = 0; i < padded; i += LANES) {
            V scaled = vmul(vmul(vsub(vload(x + i), center), factor), vload(norm->gain + i));
            vstore(out + i, norm->bias ? vadd(scaled, vload(norm->bias + i)) : scaled);
        }
    }
}

/* x * Phi(x); erf after Abramowitz and Stegun 7.1.26, absolute error 1.5e-7. */
static inline __attribute__((always_inline)) V NAME(gelu)(V x) {
    V z = vmul(vabs(x), vset(0.70710678f)), t = vdiv(vset(1), vfma(z, vset(0.3275911f), vset(1)));
    V p = vset(1.061405429f);
    p = vfma(p, t, vset(-1.453152027f));
    p = vfma(p, t, vset(1.421413741f));
    p = vfma(p, t, vset(-0.284496736f));
    p = vfma(p, t, vset(0.254829592f));
    V tail = vmul(vmul(p, t), NAME(vexp)(vmul(vmul(z, z), vset(-1)))); /* 1 - erf(z) */
    V positive = vmax(x, vset(0)); /* x Phi(x) = max(x, 0) - |x| (1 - erf(z)) / 2 */
    return vfma(vmul(vabs(x), vset(-0.5f)), tail, positive);
}

static inline __attribute__((always_inline)) V NAME(silu)(V x) {
    V e = NAME(vexp)(vmul(vabs(x), vset(-1))); /* never overflows */
    V small = vdiv(vset(1), vadd(vset(1), e)), positive = vmax(x, vset(0));
    /* sigmoid(|x|) = 1 / (1 + e), sigmoid(-|x|) = e / (1 + e); x sigmoid(x) = max(x, 0) - |x| e / (1 + e) */
    return vsub(positive, vmul(vabs(x), vmul(e, small)));
}

/* Activate rows [rows][inner outputs]: in place, or with a gate into rows [rows][feed_width]. */
static void NAME(activate)(const Stack *stack, float *x, int64_t rows) {
    const int64_t width = stack->feed_width, gated = stack->activation >= GEGLU;
    const int gelu = stack->activation == GELU || stack->activation == GEGLU;
    float *out = x;
    for (int64_t r = 0; r < rows; r++, out += width, x += (1 + gated) * width)
        for (int64_t i = 0; i < width; i += LANES) {
            V value = vload(x + i);
            value = gelu ? NAME(gelu)(value) : NAME(silu)(value);
            vstore(out + i, gated ? vmul(value, vload(x + width + i)) : value);
        }
}

/* ---- attention ---- */

/* Turn scores [n] into weights that sum to 1; `scores` has room up to a multiple of 16. */
static inline __attribute__((always_inline)) void NAME(softmax)(float *scores, int64_t n) {
    const int64_t padded = PADDED(n);
    for (int64_t i = n; i < padded; i++) scores[i] = -INFINITY;
    V most = vset(-INFINITY), sum = vset(0);
    for (int64_t i = 0; i < padded; i += LANES) most = vmax(most, vload(scores + i));
    most = vset(vmax_of(most));
    for (int64_t i = 0; i < padded; i += LANES) {
        V e = NAME(vexp)(vsub(vload(scores + i), most));
        vstore(scores + i, e);
        sum = vadd(sum, e);
    }
    V factor = vset(1.0f / vsum(sum));
    for (int64_t i = 0; i < padded; i += LANES) vstore(scores + i, vmul(vload(scores + i), factor));
}

/* Attend from one row of queries [heads][head_width] to the n keys of a sequence: out [heads][head_width].
 *
 * keys: [kv_heads][head_width][padded n]; values: [n][kv_heads][head_width].
 */
static void NAME(attend)(const Stack *stack, const float *q, const float *keys, const float *values, int64_t n, float *scores,
                         float *out) {
    const int64_t E = stack->head_width, padded = PADDED(n), shared = stack->heads / stack->kv_heads;
    const int64_t stride = stack->kv_heads * E;
    for (int64_t h = 0; h < stack->heads; h++, q += E, out += E) {
        const float *k = keys + h / shared * E * padded, *v = values + h / shared * E;
        for (int64_t s = 0; s < padded; s += LANES) {
            V a = vset(0), b = vset(0), c = vset(0), d = vset(0);
            for (int64_t e = 0; e < E; e += 4) {
                const float *column = k + e * padded + s;
                a = vfma(vset(q[e]), vload(column), a);
                b = vfma(vset(q[e + 1]), vload(column + padded), b);
                c = vfma(vset(q[e + 2]), vload(column + 2 * padded), c);
                d = vfma(vset(q[e + 3]), vload(column + 3 * padded), d);
            }
            vstore(scores + s, vmul(vadd(vadd(a, b), vadd(c, d)), vset(stack->query_scale)));
        }
        NAME(softmax)(scores, n);
        for (int64_t e = 0; e < E; e += LANES) {
            V a = vset(0), b = vset(0);
            int64_t s = 0;
            for (; s + 2 <= n; s += 2) {
                a = vfma(vset(scores[s]), vload(v + s * stride + e), a);
                b = vfma(vset(scores[s + 1]), vload(v + (s + 1) * stride + e), b);
            }
            if (s < n) a = vfma(vset(scores[s]), vload(v + s * stride + e), a);
            vstore(out + e, vadd(a, b));
        }
    }
}

/* Attend from one row of queries to the tokens of its hypothesis, each of which has a pointer to keys and values. */
static void NAME(attend_path)(const Stack *stack, const float *q, const float *const *tokens, int64_t n, float *scores,
                              float *out) {
    const int64_t E = stack->head_width, shared = stack->heads / stack->kv_heads, kv = stack->kv_heads * E;
    for (int64_t h = 0; h < stack->heads; h++, q += E, out += E) {
        const int64_t at = h / shared * E;
        for (int64_t t = 0; t < n; t++) {
            V sum = vset(0);
            for (int64_t e = 0; e < E; e += LANES) sum = vfma(vload(q + e), vload(tokens[t] + at + e), sum);
            scores[t] = vsum(sum) * stack->query_scale;
        }
        NAME(softmax)(scores, n);
        for (int64_t e = 0; e < E; e += LANES) {
            V a = vset(0), b = vset(0);
            int64_t t = 0;
            for (; t + 2 <= n; t += 2) {
                a = vfma(vset(scores[t]), vload(tokens[t] + kv + at + e), a);
                b = vfma(vset(scores[t + 1]), vload(tokens[t + 1] + kv + at + e), b);
            }
            if (t < n) a = vfma(vset(scores[t]), vload(tokens[t] + kv + at + e), a);
            vstore(out + e, vadd(a, b));
        }
    }
}

/* Write keys [n] at `kv`, rows of `stride`, as columns: [kv_heads * head_width][padded n], and values as rows. */
static void NAME(store_memory)(const Stack *stack, const float *kv, int64_t n, int64_t stride, float *keys, float *values) {
    const int64_t width = stack->kv_heads * stack->head_width, padded = PADDED(n);
    for (int64_t i = 0; i < width; i++) {
        for (int64_t s = 0; s < n; s++) keys[i * padded + s] = kv[s * stride + i];
        for (int64_t s = n; s < padded; s++) keys[i * padded + s] = 0;
    }
    for (int64_t s = 0; s < n; s++) memcpy(values + s * width, kv + s * stride + width, (size_t)width * sizeof(float));
}

/* Rotate the heads of a row by its position. angles: sines, then cosines, of half a head. */
static void NAME(rotate)(const Stack *stack, float *x, int64_t heads, const float *angles) {
    const int64_t half = stack->rotary;
    for (int64_t h = 0; h < heads; h++, x += stack->head_width)
        for (int64_t i = 0; i < half; i++) {
            float first = x[i], second = x[half + i], sine = angles[i], cosine = angles[half + i];
            x[i] = first * cosine - second * sine;
            x[half + i] = second * cosine + first * sine;
        }
}

/* ---- layers ---- */

static void NAME(embed)(const Stack *stack, const int64_t *tokens, int64_t rows, const float *const *positions, float *x) {
    const int64_t width = stack->width;
    for (int64_t r = 0; r < rows; r++) {
        const float *row = stack->embedding + tokens[r] * width, *position = positions ? positions[r] : NULL;
        for (int64_t i = 0; i < width; i += LANES) {
            V value = vmul(vload(row + i), vset(stack->embedding_scale));
            vstore(x + r * width + i, position ? vadd(value, vload(position + i)) : value);
        }
    }
    if (stack->embedding_norm.gain) NAME(norm)(&stack->embedding_norm, stack, x, rows, x);
}

/* Add the output of a sublayer to the residual stream x, whose last linear layer is `last`. */
static void NAME(add_sublayer)(const Stack *stack, const Norm *norm, const Linear *last, const float *inner, Rows *rows) {
    NAME(linear)(last, inner, rows->count, rows->x, ADD, stack->residual_scale, rows->rounded);
    if (!stack->pre) NAME(norm)(norm, stack, rows->x, rows->count, rows->x);
}

/* Return the input of a sublayer: normalized before it, or as it is. */
static const float *NAME(sublayer_input)(const Stack *stack, const Norm *norm, Rows *rows) {
    if (!stack->pre) return rows->x;
    NAME(norm)(norm, stack, rows->x, rows->count, rows->normed);
    return rows->normed;
}

static void NAME(feed_forward)(const Stack *stack, const Layer *layer, Rows *rows) {
    const float *input = NAME(sublayer_input)(stack, &layer->feed_norm, rows);
    const int mode = stack->activation == RELU ? RECTIFY : STORE;
    NAME(linear)(&layer->inner, input, rows->count, rows->wide, mode, 0, rows->rounded);
    if (stack->activation != RELU) NAME(activate)(stack, rows->wide, rows->count);
    NAME(add_sublayer)(stack, &layer->feed_norm, &layer->outer, rows->wide, rows);
}

/* Encode sentences, whose tokens follow each other, and project their memory for each layer of the decoder. */
static void NAME(encode)(State *state, int64_t first, int64_t last, const int64_t *tokens, const float *positions,
                         const float *angles, Rows *rows) {
    const Stack *stack = &state->model->encoder, *decoder = &state->model->decoder;
    const int64_t heads = stack->heads, kv_heads = stack->kv_heads, E = stack->head_width;
    int64_t row = 0;
    for (int64_t b = first; b < last; b++)
        for (int64_t s = 0; s < state->lengths[b]; s++, row++)
            rows->positions[row] = positions + s * stack->width;
    NAME(embed)(stack, tokens, rows->count, positions ? rows->positions : NULL, rows->x);
    for (int64_t l = 0; l < stack->layers; l++) {
        const Layer *layer = stack->layer + l;
        const int64_t stride = layer->qkv.outputs;
        const float *input = NAME(sublayer_input)(stack, &layer->self_norm, rows);
        NAME(linear)(&layer->qkv, input, rows->count, rows->wide, STORE, 0, rows->rounded);
        float *qkv = rows->wide, *out = rows->attended;
        for (int64_t b = first; b < last; b++) {
            const int64_t n = state->lengths[b];
            float *keys = rows->memory, *values = keys + kv_heads * E * PADDED(n);
            if (stack->rotary)
                for (int64_t s = 0; s < n; s++)
                    NAME(rotate)(stack, qkv + s * stride, heads + kv_heads, angles + s * 2 * stack->rotary);
            NAME(store_memory)(stack, qkv + heads * E, n, stride, keys, values);
            for (int64_t s = 0; s < n; s++, qkv += stride, out += heads * E)
                NAME(attend)(stack, qkv, keys, values, n, rows->scores, out);
        }
        NAME(add_sublayer)(stack, &layer->self_norm, &layer->self_out, rows->attended, rows);
        NAME(feed_forward)(stack, layer, rows);
    }
    if (stack->final_norm.gain) NAME(norm)(&stack->final_norm, stack, rows->x, rows->count, rows->x);
    for (int64_t l = 0; l < decoder->layers; l++) {
        const Linear *kv = &decoder->layer[l].kv;
        NAME(linear)(kv, rows->x, rows->count, rows->wide, STORE, 0, rows->rounded);
        const float *from = rows->wide;
        for (int64_t b = first; b < last; b++) {
            const int64_t n = state->lengths[b];
            float *keys = state->memory + l * state->memory_size + state->memory_offsets[b];
            NAME(store_memory)(decoder, from, n, kv->outputs, keys, keys + decoder->kv_heads * decoder->head_width * PADDED(n));
            from += n * kv->outputs;
        }
    }
}

/* Append a token to each hypothesis and compute its hidden state [rows][true width]. */
static void NAME(step)(State *state, const int64_t *tokens, const float *position, const float *angles, float *hidden,
                       Rows *rows) {
    const Stack *stack = &state->model->decoder;
    const int64_t M = rows->count, heads = stack->heads, kv_width = stack->kv_heads * stack->head_width;
    const int64_t q_width = heads * stack->head_width, steps = state->steps; /* of earlier tokens, and this one */
    for (int64_t r = 0; r < M; r++) rows->positions[r] = position;
    NAME(embed)(stack, tokens, M, position ? rows->positions : NULL, rows->x);
    for (int64_t l = 0; l < stack->layers; l++) {
        const Layer *layer = stack->layer + l;
        const int64_t stride = layer->qkv.outputs;
        const float *input = NAME(sublayer_input)(stack, &layer->self_norm, rows);
        NAME(linear)(&layer->qkv, input, M, rows->wide, STORE, 0, rows->rounded);
        float *slab = state->slab[steps - 1] + l * M * 2 * kv_width;
        for (int64_t r = 0; r < M; r++) {
            float *qkv = rows->wide + r * stride;
            if (stack->rotary) NAME(rotate)(stack, qkv, heads + stack->kv_heads, angles);
            memcpy(slab + r * 2 * kv_width, qkv + q_width, (size_t)(2 * kv_width) * sizeof(float));
        }
        for (int64_t r = 0; r < M; r++) {
            const int32_t *path = state->path + r * state->capacity;
            for (int64_t t = 0; t < steps; t++)
                rows->tokens[t] = state->slab[t] + (l * state->slab_rows[t] + path[t]) * 2 * kv_width;
            NAME(attend_path)(stack, rows->wide + r * stride, rows->tokens, steps, rows->scores, rows->attended + r * q_width);
        }
        NAME(add_sublayer)(stack, &layer->self_norm, &layer->self_out, rows->attended, rows);

        input = NAME(sublayer_input)(stack, &layer->cross_norm, rows);
        NAME(linear)(&layer->q, input, M, rows->wide, STORE, 0, rows->rounded);
        for (int64_t r = 0; r < M; r++) {
            const int64_t b = state->sentence[r], n = state->lengths[b];
            const float *keys = state->memory + l * state->memory_size + state->memory_offsets[b];
            NAME(attend)(stack, rows->wide + r * layer->q.outputs, keys, keys + kv_width * PADDED(n), n, rows->scores,
                         rows->attended + r * q_width);
        }
        NAME(add_sublayer)(stack, &layer->cross_norm, &layer->cross_out, rows->attended, rows);
        NAME(feed_forward)(stack, layer, rows);
    }
    if (stack->final_norm.gain) NAME(norm)(&stack->final_norm, stack, rows->x, M, rows->x);
    for (int64_t r = 0; r < M; r++)
        memcpy(hidden + r * stack->true_width, rows->x + r * stack->width, (size_t)stack->true_width * sizeof(float));
}

/* ---- the most probable tokens ---- */

/* Insert a value into the best so far, which are in descending order; equal ones stay in the order they came. */
static inline void NAME(insert)(float *values, int64_t *tokens, int64_t count, float value, int64_t token) {
    int64_t i = count - 1;
    for (; i > 0 && values[i - 1] < value; i--) values[i] = values[i - 1], tokens[i] = tokens[i - 1];
    values[i] = value, tokens[i] = token;
}

/* Find the `count` most probable tokens of each row that are not forbidden, and the log-probability of token `eos`.
 *
 * The logits of some hundred tokens at a time stay in the cache: their exponentials are added, with the largest logit
 * so far as reference, and those above the least of the best so far are kept.
 *
 * forbidden: tokens in ascending order. work: `best_work` floats.
 */
static void NAME(best)(const Linear *output, const float *x, int64_t rows, const int64_t *forbidden, int64_t num_forbidden,
                       int64_t eos, int64_t count, float *values, int64_t *tokens, float *eos_values, float *work) {
    const int64_t inputs = output->inputs, columns = best_columns(output);
    float *scales = work, *reference = scales + PADDED(rows), *sums = reference + PADDED(rows), *logits = sums + PADDED(rows);
    float *rounded = logits + MAX_ROWS * columns;
    const void *input = x;
    if (output->scales) {
        NAME(round_rows)(x, rows, inputs, (uint8_t *)rounded, scales);
        input = rounded;
    }
    const size_t row_size = (size_t)inputs * (output->scales ? 1 : sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        reference[r] = -INFINITY, sums[r] = 0;
        for (int64_t c = 0; c < count; c++) values[r * count + c] = -INFINITY, tokens[r * count + c] = 0;
    }
    int64_t next = 0;
    for (int64_t first = 0; first < output->outputs; first += columns) {
        const int64_t last = first + columns < output->outputs ? first + columns : output->outputs, n = last - first;
        int64_t next_after = next;
        while (next_after < num_forbidden && forbidden[next_after] < last) next_after++;
        for (int64_t r = 0; r < rows; r += MAX_ROWS) {
            const int64_t tile = rows - r < MAX_ROWS ? rows - r : MAX_ROWS;
            NAME(multiply)(output, (const char *)input + (size_t)r * row_size, scales + r, tile, first, last, logits, columns,
                           STORE, 0);
            for (int64_t each = 0; each < tile; each++) {
                float *own = logits + each * columns, *best = values + (r + each) * count;
                int64_t *best_tokens = tokens + (r + each) * count;
                V most = vset(-INFINITY), sum = vset(0);
                for (int64_t i = 0; i < n; i += LANES) most = vmax(most, vload(own + i));
                const float highest = vmax_of(most);
                if (highest > reference[r + each]) {
                    sums[r + each] *= expf(reference[r + each] - highest);
                    reference[r + each] = highest;
                }
                const V base = vset(reference[r + each]);
                for (int64_t i = 0; i < n; i += LANES) sum = vadd(sum, NAME(vexp)(vsub(vload(own + i), base)));
                sums[r + each] += vsum(sum);
                if (eos >= first && eos < last) eos_values[r + each] = own[eos - first];
                for (int64_t f = next; f < next_after; f++) own[forbidden[f] - first] = -INFINITY;
                if (highest <= best[count - 1]) continue;
                for (int64_t i = 0; i < n; i += LANES) {
                    unsigned above = vgreater(vload(own + i), vset(best[count - 1]));
                    for (; above; above &= above - 1) {
                        const int64_t at = i + __builtin_ctz(above);
                        if (own[at] > best[count - 1]) NAME(insert)(best, best_tokens, count, own[at], first + at);
                    }
                }
            }
        }
        next = next_after;
    }
    for (int64_t r = 0; r < rows; r++) {
        const float normalizer = reference[r] + logf(sums[r]);
        for (int64_t c = 0; c < count; c++) values[r * count + c] -= normalizer;
        eos_values[r] -= normalizer;
    }
}

/* Return the sum of the products of a row with one of the rows of a matrix. */
static inline float NAME(dot)(const float *x, const float *w, int64_t inputs) {
    V sum = vset(0);
    for (int64_t i = 0; i < inputs; i += LANES) sum = vfma(vload(x + i), vload(w + i), sum);
    return vsum(sum);
}

/* The same for bytes, of which `w` has zeros up to a whole vector. */
static inline int32_t NAME(int8_dot)(const uint8_t *x, const int8_t *w, int64_t inputs) {
    VI sum = viload_zero();
    for (int64_t i = 0; i < inputs; i += LANES * GROUP) {
        VI each = viload(x + i);
        vidot(sum, each, viload(w + i));
    }
    return visum(sum);
}

/* Find the most probable tokens as `best` does, among those that the sentence of each row may use; see `mtkit_best_listed`. */
static void NAME(best_listed)(const Linear *output, const float *x, int64_t rows, const int32_t *lists, const int64_t *spans,
                              int64_t hypotheses, const int64_t *forbidden, int64_t num_forbidden, int64_t eos,
                              int64_t count, float *values, int64_t *tokens, float *eos_values, float *work) {
    const int64_t inputs = output->inputs, row_bytes = ROW_BYTES(inputs);
    float *scales = work, *logits = scales + PADDED(rows);
    uint8_t *rounded = (uint8_t *)(logits + PADDED(output->outputs));
    if (output->scales) NAME(round_rows)(x, rows, inputs, rounded, scales);
    for (int64_t r = 0; r < rows; r++, values += count, tokens += count) {
        const int64_t *span = spans + 2 * (r / hypotheses), n = span[1] - span[0];
        const int32_t *list = lists + span[0];
        eos_values[r] = -INFINITY;
        for (int64_t i = 0; i < n; i++) {
            const int64_t token = list[i];
            if (output->scales) {
                const int8_t *weight = (const int8_t *)output->weight + token * row_bytes;
                const int32_t sum = NAME(int8_dot)(rounded + r * inputs, weight, inputs) + output->starts[token];
                logits[i] = (float)sum * (scales[r] * output->scales[token]);
            } else {
                logits[i] = NAME(dot)(x + r * inputs, (const float *)output->weight + token * inputs, inputs);
            }
            if (output->bias) logits[i] += output->bias[token];
            if (token == eos) eos_values[r] = logits[i];
        }
        for (int64_t i = n; i < PADDED(n); i++) logits[i] = -INFINITY;
        V most = vset(-INFINITY), sum = vset(0);
        for (int64_t i = 0; i < n; i += LANES) most = vmax(most, vload(logits + i));
        const V base = vset(vmax_of(most));
        for (int64_t i = 0; i < n; i += LANES) sum = vadd(sum, NAME(vexp)(vsub(vload(logits + i), base)));
        const float normalizer = vmax_of(most) + logf(vsum(sum));
        for (int64_t c = 0; c < count; c++) values[c] = -INFINITY, tokens[c] = 0;
        for (int64_t i = 0, f = 0; i < n; i++) {
            while (f < num_forbidden && forbidden[f] < list[i]) f++;
            const int is_forbidden = f < num_forbidden && forbidden[f] == list[i];
            if (logits[i] > values[count - 1] && !is_forbidden) NAME(insert)(values, tokens, count, logits[i], list[i]);
        }
        for (int64_t c = 0; c < count; c++) values[c] -= normalizer;
        eos_values[r] -= normalizer;
    }
}

static const Kernels NAME(kernels) = {NAME(encode), NAME(step), NAME(best), NAME(best_listed), NAME(linear)};

#include "simd_end.h"
