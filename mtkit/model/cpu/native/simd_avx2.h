/* Vectors of 8 floats, for CPUs with AVX2 and FMA. Products of bytes are added four at a time: first two in
 * 16 bits, where 2 x 127 x 127 fits because the inputs have 7 bits. */

#define LANES 8
#define MAX_ROWS 6 /* rows of a tile: 12 sums, 2 vectors of the matrix and 1 of the input fit into 16 registers */
#define V __m256
#define VI __m256i

#define vload(p) _mm256_loadu_ps(p)
#define vstore(p, x) _mm256_storeu_ps(p, x)
#define vset(x) _mm256_set1_ps(x)
#define vadd(x, y) _mm256_add_ps(x, y)
#define vsub(x, y) _mm256_sub_ps(x, y)
#define vmul(x, y) _mm256_mul_ps(x, y)
#define vdiv(x, y) _mm256_div_ps(x, y)
#define vmax(x, y) _mm256_max_ps(x, y)
#define vfma(x, y, z) _mm256_fmadd_ps(x, y, z)
#define vabs(x) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x)
#define vround(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define vsum(x) sum_avx2(x)
#define vmax_of(x) max_avx2(x)
#define vgreater(x, y) ((unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_GT_OQ)))
#define vscale2(x, n) \
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)))

#define viload(p) _mm256_loadu_si256((const __m256i *)(p))
#define viload_zero() _mm256_setzero_si256()
#define vifloat(x) _mm256_cvtepi32_ps(x)
#define visum(x) integer_sum_avx2(x)

#define INPUT_ZERO 64
#define vidot(sums, x, w) \
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)))
#define viinput(p) _mm256_set1_epi32(*(const int32_t *)(p))
#define vistore_rounded(p, x) store_rounded_avx2(p, x)

static inline float sum_avx2(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline int32_t integer_sum_avx2(__m256i x) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}

static inline float max_avx2(__m256 x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

static inline void store_rounded_avx2(uint8_t *p, __m256 x) {
    __m256i integers = _mm256_cvtps_epi32(x);
    __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
    _mm_storel_epi64((__m128i *)p, _mm_add_epi8(_mm_packs_epi16(shorts, shorts), _mm_set1_epi8(INPUT_ZERO)));
}
