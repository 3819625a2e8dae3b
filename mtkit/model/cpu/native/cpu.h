/* What both libraries share: exported functions, and the instructions of this CPU. */

#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* A number for what Python passes to the functions; it changes with that, here and in loading.py. */
EXPORT int64_t mtkit_interface(void) { return 2; }

#define PADDED(n) (((n) + 15) / 16 * 16)

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_KERNELS
#endif

/* Return the best instructions that this CPU has: 0 none of them, 1 AVX2, 2 AVX-512, 3 AVX-512 with VNNI. */
static inline int64_t best_instructions(void) {
#ifdef HAS_KERNELS
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return 1;
    return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
#else
    return 0;
#endif
}
