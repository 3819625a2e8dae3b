/* Operations of training on a CPU that PyTorch makes of many passes over memory: attention, cross-entropy, dropout, norms.
 *
 * `training.py` calls these functions through ctypes. Random numbers come from Python, so that masks are PyTorch's.
 */

#include "training.h"

#include "cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    void (*attend)(const Attention *, float *);
    void (*attend_backward)(const Attention *, float *);
    void (*cross_entropy)(void *, int64_t, int64_t, int64_t, const int64_t *, float, float *, double *);
    void (*drop)(const float *, const void *, int64_t, const uint8_t *, int64_t, float, int64_t, void *, int64_t);
    void (*norm)(const NormTask *);
    void (*norm_backward)(const NormTask *);
} Kernels;

#ifdef HAS_KERNELS
static inline float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, sizeof(out));
    return out;
}

#define KERNELS_FILE "training_kernels.h"
#include "each_simd.h"

static const Kernels *const KERNELS[] = {NULL, &kernels_avx2, &kernels_avx512, &kernels_avx512};
#else
static const Kernels *const KERNELS[] = {NULL, NULL, NULL, NULL};
#endif

/* See `best_instructions`. */
EXPORT int64_t mtkit_training_instructions(void) { return best_instructions(); }

/* Return working memory for a batch of attention: the mask, and one head of each tensor. NULL if memory is short. */
static float *attention_work(const Attention *task) {
    const int64_t T = task->queries, S = task->keys, E = task->head_width, padded = PADDED(S);
    return malloc((size_t)(3 * T * padded + 4 * E * padded + 3 * T * E + 2 * S * E + padded) * sizeof(float));
}

/* Attend with all heads; 0 if memory is short. */
EXPORT int64_t mtkit_attend(int64_t instructions, const Attention *task) {
    float *work = attention_work(task);
    if (!work) return 0;
    KERNELS[instructions]->attend(task, work);
    free(work);
    return 1;
}

/* Compute the gradients of queries, keys and values; 0 if memory is short. */
EXPORT int64_t mtkit_attend_backward(int64_t instructions, const Attention *task) {
    float *work = attention_work(task);
    if (!work) return 0;
    KERNELS[instructions]->attend_backward(task, work);
    free(work);
    return 1;
}

/* Replace logits [rows][vocabulary] by the gradient of the label-smoothed cross-entropy; 0 if memory is short.
 *
 * sums: the loss and the nll of all rows are added to these two.
 */
EXPORT int64_t mtkit_cross_entropy(int64_t instructions, void *logits, int64_t bf16, int64_t rows, int64_t vocabulary,
                                   const int64_t *targets, float smoothing, double *sums) {
    float *row = malloc((size_t)PADDED(vocabulary) * sizeof(float));
    if (!row) return 0;
    KERNELS[instructions]->cross_entropy(logits, bf16, rows, vocabulary, targets, smoothing, row, sums);
    free(row);
    return 1;
}

/* out = dropout(x), or residual + dropout(x); count is a multiple of 16. */
EXPORT void mtkit_drop(int64_t instructions, const float *residual, const void *x, int64_t x_bf16, const uint8_t *bytes,
                       int64_t threshold, float scale, int64_t count, void *out, int64_t out_bf16) {
    KERNELS[instructions]->drop(residual, x, x_bf16, bytes, threshold, scale, count, out, out_bf16);
}

/* Normalize rows. */
EXPORT void mtkit_norm(int64_t instructions, const NormTask *task) { KERNELS[instructions]->norm(task); }

/* Compute the gradient of the rows, and add up those of gain and bias. */
EXPORT void mtkit_norm_backward(int64_t instructions, const NormTask *task) { KERNELS[instructions]->norm_backward(task); }
