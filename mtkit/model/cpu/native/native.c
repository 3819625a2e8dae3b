/* Translation on a CPU without an interpreter between the operations: encoder, decoder step, most probable tokens.
 *
 * `library.py` calls these functions through ctypes, which releases the interpreter's lock meanwhile. They allocate the
 * state of a batch; weights belong to Python. There is no global state: threads may run batches at the same time.
 */

#include "native.h"

#include "cpu.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define ROW_BYTES(inputs) (((inputs) + 63) / 64 * 64)

enum { STORE, RECTIFY, ADD }; /* what happens to the output of a linear layer: out = y, max(y, 0), keep * out + y */

typedef struct { /* activations of a pass: some tokens of the source, or the newest tokens of all hypotheses */
    int64_t count;
    float *x, *normed, *wide, *attended, *rounded, *scores;
    float *memory;           /* keys and values of one sentence */
    const float **positions; /* of each row */
    const float **tokens;    /* keys and values of each token of a hypothesis */
} Rows;

typedef struct {
    void (*encode)(State *, int64_t, int64_t, const int64_t *, const float *, const float *, Rows *);
    void (*step)(State *, const int64_t *, const float *, const float *, float *, Rows *);
    void (*best)(const Linear *, const float *, int64_t, const int64_t *, int64_t, int64_t, int64_t, float *, int64_t *,
                 float *, float *);
    void (*best_listed)(const Linear *, const float *, int64_t, const int32_t *, const int64_t *, int64_t, const int64_t *,
                        int64_t, int64_t, int64_t, float *, int64_t *, float *, float *);
    void (*linear)(const Linear *, const float *, int64_t, float *, int, float, float *);
} Kernels;

/* Return how many outputs of the vocabulary to compute at a time: their weights stay in the cache for all rows. */
static int64_t best_columns(const Linear *output) {
    const int64_t bytes = output->inputs * (output->scales ? 1 : 4), columns = (256 << 10) / bytes / 32 * 32;
    return columns < 64 ? 64 : columns > 1024 ? 1024 : columns;
}

#ifdef HAS_KERNELS
#define KERNELS_FILE "kernels.h"
#define USES_VNNI
#include "each_simd.h"

static const Kernels *const KERNELS[] = {NULL, &kernels_avx2, &kernels_avx512, &kernels_vnni};
#else
static const Kernels *const KERNELS[] = {NULL, NULL, NULL, NULL};
#endif

/* See `best_instructions`. */
EXPORT int64_t mtkit_instructions(void) { return best_instructions(); }

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

/* Return memory for floats, aligned to cache lines. */
static float *allocate(int64_t floats) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, (size_t)largest(floats, 1) * sizeof(float))) return NULL;
    return memory;
}

/* Set out the activations of `count` rows in the state's working memory, enlarging it where needed; 0 if there is none. */
static int begin_rows(State *state, const Stack *stack, int64_t count, int64_t longest, Rows *rows) {
    const int64_t padded = PADDED(count), E = stack->head_width;
    int64_t wide = largest(stack->layer->qkv.outputs, stack->layer->inner.outputs), inputs = stack->width;
    for (int64_t l = 0; l < state->model->decoder.layers; l++) wide = largest(wide, state->model->decoder.layer[l].kv.outputs);
    inputs = largest(largest(inputs, stack->heads * E), stack->feed_width);
    const int64_t sizes[] = {padded * stack->width,     padded * stack->width, padded * largest(wide, stack->width),
                             padded * stack->heads * E, padded + padded * inputs, PADDED(longest),
                             2 * stack->kv_heads * E * PADDED(longest), 2 * padded, 2 * PADDED(longest)};
    float **const parts[] = {&rows->x, &rows->normed, &rows->wide, &rows->attended, &rows->rounded, &rows->scores, &rows->memory};
    int64_t size = 0;
    for (int i = 0; i < 9; i++) size += sizes[i];
    if (size > state->work_size) {
        free(state->work);
        state->work = allocate(size);
        state->work_size = state->work ? size : 0;
        if (!state->work) return 0;
    }
    float *at = state->work;
    for (int i = 0; i < 7; at += sizes[i++]) *parts[i] = at;
    rows->positions = (const float **)at;
    rows->tokens = (const float **)(at + sizes[7]);
    rows->count = count;
    return 1;
}

EXPORT void mtkit_free(State *state) {
    if (!state) return;
    for (int64_t t = 0; t < state->steps; t++) free(state->slab[t]);
    free(state->slab), free(state->slab_rows), free(state->work), free(state->memory);
    free(state->lengths), free(state->memory_offsets);
    free(state->sentence), free(state->path);
    free(state);
}

enum { ENCODED_AT_ONCE = 256 }; /* tokens, so that the activations of a layer stay in the cache */

/* Encode sentences and return the state before the first step, with one hypothesis of each; NULL if memory is short.
 *
 * tokens: of all sentences, one after the other. positions [longest][width] and angles [longest][2 * rotary]: or NULL.
 */
EXPORT State *mtkit_encode(const Model *model, const int64_t *tokens, const int64_t *lengths, int64_t sentences,
                           const float *positions, const float *angles) {
    const Stack *decoder = &model->decoder;
    const int64_t kv_width = decoder->kv_heads * decoder->head_width;
    State *state = calloc(1, sizeof(State));
    if (!state) return NULL;
    state->model = model, state->sentences = state->rows = sentences;
    state->lengths = malloc((size_t)(sentences + 1) * sizeof(int64_t));
    state->memory_offsets = malloc((size_t)(sentences + 1) * sizeof(int64_t));
    state->sentence = malloc((size_t)(sentences + 1) * sizeof(int32_t));
    int64_t longest = 1;
    if (!state->lengths || !state->memory_offsets || !state->sentence) goto failed;
    for (int64_t b = 0; b < sentences; b++) {
        state->lengths[b] = lengths[b], state->sentence[b] = (int32_t)b;
        state->memory_offsets[b] = state->memory_size;
        state->memory_size += PADDED(kv_width * (PADDED(lengths[b]) + lengths[b]));
        longest = largest(longest, lengths[b]);
    }
    state->memory = allocate(decoder->layers * state->memory_size);
    if (!state->memory) goto failed;
    for (int64_t first = 0, last = 0; first < sentences; first = last) {
        int64_t count = 0;
        do count += lengths[last++];
        while (last < sentences && count + lengths[last] <= ENCODED_AT_ONCE);
        Rows rows;
        if (!begin_rows(state, &model->encoder, count, longest, &rows)) goto failed;
        KERNELS[model->instructions]->encode(state, first, last, tokens, positions, angles, &rows);
        tokens += count;
    }
    return state;
failed:
    mtkit_free(state);
    return NULL;
}

/* Make room for another step; 0 if memory is short. */
static int begin_step(State *state) {
    const Stack *stack = &state->model->decoder;
    const int64_t M = state->rows, t = state->steps;
    if (t == state->capacity) {
        const int64_t capacity = t ? 2 * t : 32;
        int32_t *path = malloc((size_t)(largest(M, 1) * capacity) * sizeof(int32_t));
        float **slab = realloc(state->slab, (size_t)capacity * sizeof(float *));
        if (slab) state->slab = slab;
        int64_t *slab_rows = realloc(state->slab_rows, (size_t)capacity * sizeof(int64_t));
        if (slab_rows) state->slab_rows = slab_rows;
        if (!path || !slab || !slab_rows) {
            free(path);
            return 0;
        }
        for (int64_t r = 0; r < M; r++) memcpy(path + r * capacity, state->path + r * t, (size_t)t * sizeof(int32_t));
        free(state->path);
        state->path = path, state->capacity = capacity;
    }
    state->slab[t] = allocate(stack->layers * M * 2 * stack->kv_heads * stack->head_width);
    if (!state->slab[t]) return 0;
    state->slab_rows[t] = M;
    for (int64_t r = 0; r < M; r++) state->path[r * state->capacity + t] = (int32_t)r;
    state->steps++;
    return 1;
}

/* Append a token to each hypothesis and compute its hidden state [rows][true width]; 0 if memory is short.
 *
 * position [width] and angles [2 * rotary] are those of this step, or NULL.
 */
EXPORT int64_t mtkit_step(State *state, const int64_t *tokens, const float *position, const float *angles, float *hidden) {
    int64_t longest = state->steps + 1;
    for (int64_t b = 0; b < state->sentences; b++) longest = largest(longest, state->lengths[b]);
    Rows rows;
    if (!begin_step(state) || !begin_rows(state, &state->model->decoder, state->rows, longest, &rows)) return 0;
    KERNELS[state->model->instructions]->step(state, tokens, position, angles, hidden, &rows);
    return 1;
}

/* Continue with the hypotheses `parents`, in this order; some may be missing and some repeated. 0 if memory is short. */
EXPORT int64_t mtkit_select(State *state, const int64_t *parents, int64_t rows) {
    int32_t *path = malloc((size_t)(largest(rows, 1) * largest(state->capacity, 1)) * sizeof(int32_t));
    int32_t *sentence = malloc((size_t)largest(rows, 1) * sizeof(int32_t));
    if (!path || !sentence) {
        free(path), free(sentence);
        return 0;
    }
    for (int64_t r = 0; r < rows; r++) {
        sentence[r] = state->sentence[parents[r]];
        if (state->steps)
            memcpy(path + r * state->capacity, state->path + parents[r] * state->capacity,
                   (size_t)state->steps * sizeof(int32_t));
    }
    free(state->path), free(state->sentence);
    state->path = path, state->sentence = sentence, state->rows = rows;
    return 1;
}

/* Return the floats of working memory that `mtkit_best` needs. */
EXPORT int64_t mtkit_best_work(const Model *model, int64_t rows) {
    return 3 * PADDED(rows) + 16 * best_columns(&model->output) + PADDED(rows) * model->output.inputs;
}

/* Find the most probable tokens of each row; see `best` in kernels.h. hidden: [rows][width]. */
EXPORT void mtkit_best(const Model *model, const float *hidden, int64_t rows, const int64_t *forbidden,
                       int64_t num_forbidden, int64_t eos, int64_t count, float *values, int64_t *tokens, float *eos_values,
                       float *work) {
    KERNELS[model->instructions]->best(&model->output, hidden, rows, forbidden, num_forbidden, eos, count, values, tokens,
                                       eos_values, work);
}

/* Return the floats of working memory that `mtkit_best_listed` needs. */
EXPORT int64_t mtkit_best_listed_work(const Linear *output, int64_t rows) {
    return PADDED(rows) * (1 + output->inputs) + PADDED(output->outputs) + 16;
}

/* Find the most probable tokens of each row among those in the list of its sentence, and their share of its probability.
 *
 * output: its weights are [outputs][inputs], bytes with zeros up to ROW_BYTES. lists: tokens, in ascending order for each
 * sentence, from spans [sentence][0] to spans [sentence][1]. hypotheses: rows of a sentence.
 */
EXPORT void mtkit_best_listed(int64_t instructions, const Linear *output, const float *hidden, int64_t rows,
                              const int32_t *lists, const int64_t *spans, int64_t hypotheses, const int64_t *forbidden,
                              int64_t num_forbidden, int64_t eos, int64_t count, float *values, int64_t *tokens,
                              float *eos_values, float *work) {
    KERNELS[instructions]->best_listed(output, hidden, rows, lists, spans, hypotheses, forbidden, num_forbidden, eos, count,
                                       values, tokens, eos_values, work);
}

/* Apply a linear layer: x [rows][inputs] to out [rows][outputs]. work: rows + 16 floats, and as many as x. */
EXPORT void mtkit_linear(int64_t instructions, const Linear *layer, const float *x, int64_t rows, float *out, float *work) {
    KERNELS[instructions]->linear(layer, x, rows, out, STORE, 0, work);
}
