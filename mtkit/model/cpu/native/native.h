/* What Python passes: pointers to packed weights, and sizes. `library.py` mirrors these structures.
 *
 * Every size is padded with zeros to a multiple of 16, so that no loop has a remainder: width, heads, feed-forward,
 * vocabulary (32). Only norms divide by the true width.
 */

#include <stdint.h>

#define GROUP 4 /* neighboring inputs in one lane: their products with a matrix of bytes are added at once */

typedef struct {         /* a linear layer: out = x W^T + bias */
    int64_t outputs;     /* a multiple of 32 */
    int64_t inputs;      /* a multiple of 16 */
    const void *weight;  /* panels of 2 x LANES outputs: float [inputs][panel] or int8 [inputs / GROUP][panel][GROUP] */
    const float *scales; /* of each output, for a matrix of 8-bit integers; NULL for floats */
    const int32_t *starts; /* of each output: what its sum of integers starts with, which undoes INPUT_ZERO */
    const float *bias;     /* of each output, or NULL */
} Linear;

typedef struct {
    const float *gain; /* NULL: no norm */
    const float *bias; /* NULL: RMSNorm */
} Norm;

typedef struct { /* a layer of the encoder (without cross-attention) or the decoder */
    Norm self_norm, cross_norm, feed_norm;
    Linear qkv, self_out;
    Linear q, kv, cross_out;
    Linear inner, outer;
} Layer;

enum { RELU, GELU, SILU, GEGLU, SWIGLU };

typedef struct {
    int64_t layers, true_width, width, heads, kv_heads, head_width, feed_width;
    int64_t activation, pre, rotary; /* pre: norms come before the sublayers; rotary: true half of a head, or 0 */
    float epsilon, residual_scale, query_scale, embedding_scale;
    const float *embedding; /* [vocabulary][width] */
    Norm embedding_norm, final_norm;
    const Layer *layer;
} Stack;

typedef struct {
    int64_t instructions; /* 1 AVX2, 2 AVX-512, 3 AVX-512 with VNNI */
    Stack encoder, decoder;
    Linear output;
} Model;

typedef struct { /* the hypotheses of a batch between two steps */
    const Model *model;
    int64_t sentences, *lengths, *memory_offsets, memory_size; /* the memory of a sentence: keys, then values */
    float *memory;                                              /* of all layers of the decoder */
    int64_t rows, steps, capacity; /* live hypotheses, tokens of each, steps for which there is room */
    int32_t *sentence;             /* of each row */
    int32_t *path;                 /* [row][capacity]: where each earlier token of a hypothesis is in `slab` */
    float **slab;       /* of each step: keys and values [layer][row][2][kv_heads * head_width] */
    int64_t *slab_rows; /* rows at each step */
    float *work;        /* room for activations */
    int64_t work_size;
} State;
