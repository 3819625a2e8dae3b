/* What Python passes for training: pointers to tensors, and sizes. `training.py` mirrors these structures.
 *
 * Activations are float, or bfloat16 if `bf16` is not 0. Sums are float in either case.
 */

#include <stdint.h>

typedef struct {
    int64_t bf16, batch, heads, kv_heads, queries, keys, head_width; /* head_width: a multiple of 16 */
    int64_t q_stride, kv_stride;                                     /* elements from one token to the next */
    const void *q, *k, *v;                                           /* [batch][token][head][head_width] */
    const uint8_t *mask;             /* 1 where a query may attend to a key, or NULL */
    int64_t mask_batch, mask_query;  /* its strides; 0 where it is the same for all. Keys are next to each other */
    const uint8_t *bytes;            /* random, [batch][heads][queries][keys] and 64 more, or NULL without dropout */
    int64_t threshold;               /* bytes below it drop a weight */
    float scale, keep_scale;         /* of scores; of weights that are kept */
    void *out;                       /* [batch][queries][heads * head_width] */
    float *normalizers;              /* [batch][heads][queries]: log of the sum of exponentials */
    const void *grad;                /* of `out` */
    void *q_grad, *k_grad, *v_grad;  /* with the strides of q, k and v */
} Attention;

typedef struct {
    int64_t bf16, rows, width;     /* bf16: of `out` and `grad`; width: a multiple of 16 */
    const float *x, *gain, *bias;  /* bias: or NULL */
    int64_t centered;              /* LayerNorm; 0 is RMSNorm */
    float epsilon;
    void *out;
    float *statistics;             /* [rows][2]: mean, and one over the standard deviation */
    const void *grad;
    float *x_grad, *gain_grad, *bias_grad; /* the last may be NULL */
} NormTask;
