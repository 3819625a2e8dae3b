/* Vectors of 16 floats. Products of bytes are added four at a time: with VNNI at once, without it as in AVX2. */

#define LANES 16
#define MAX_ROWS 12 /* rows of a tile: 24 sums, 2 vectors of the matrix and 1 of the input fit into 32 registers */
#define V __m512
#define VI __m512i

#define vload(p) _mm512_loadu_ps(p)
#define vstore(p, x) _mm512_storeu_ps(p, x)
#define vset(x) _mm512_set1_ps(x)
#define vadd(x, y) _mm512_add_ps(x, y)
#define vsub(x, y) _mm512_sub_ps(x, y)
#define vmul(x, y) _mm512_mul_ps(x, y)
#define vdiv(x, y) _mm512_div_ps(x, y)
#define vmax(x, y) _mm512_max_ps(x, y)
#define vfma(x, y, z) _mm512_fmadd_ps(x, y, z)
#define vabs(x) _mm512_abs_ps(x)
#define vround(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define vsum(x) _mm512_reduce_add_ps(x)
#define vmax_of(x) _mm512_reduce_max_ps(x)
#define vgreater(x, y) ((unsigned)_mm512_cmp_ps_mask(x, y, _CMP_GT_OQ)) /* a bit for each lane */
#define vscale2(x, n) _mm512_scalef_ps(x, n)                            /* x * 2^n */

#define viload(p) _mm512_loadu_si512((const void *)(p))
#define viload_zero() _mm512_setzero_si512()
#define vifloat(x) _mm512_cvtepi32_ps(x)
#define visum(x) _mm512_reduce_add_epi32(x)

#ifdef WITH_VNNI
#define INPUT_ZERO 128
/* With the intrinsic, GCC 12 copies and stores every sum at every step. */
#define vidot(sums, x, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(w))
#else
#define INPUT_ZERO 64
#define vidot(sums, x, w) \
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1)))
#endif
#define viinput(p) _mm512_set1_epi32(*(const int32_t *)(p))
#define vistore_rounded(p, x)                                                       \
    _mm_storeu_si128((__m128i *)(p), _mm_add_epi8(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)), \
                                                  _mm_set1_epi8((char)INPUT_ZERO)))
