/* The exponential function for one set of instructions; kernels include this file after a `simd_*.h`. */

/* exp(x) for x <= 0 or small, relative error 2e-7 (the polynomial is that of Cephes); about 0 below -87. */
static inline __attribute__((always_inline)) V NAME(vexp)(V x) {
    x = vmax(vset(-87.0f), x); /* in this order NaN stays NaN */
    V n = vround(vmul(x, vset(1.44269504f)));
    x = vfma(n, vset(-0.693359375f), x);
    x = vfma(n, vset(2.12194440e-4f), x);
    V p = vset(1.9875691500e-4f);
    p = vfma(p, x, vset(1.3981999507e-3f));
    p = vfma(p, x, vset(8.3334519073e-3f));
    p = vfma(p, x, vset(4.1665795894e-2f));
    p = vfma(p, x, vset(1.6666665459e-1f));
    p = vfma(p, x, vset(5.0000001201e-1f));
    p = vfma(p, vmul(x, x), vadd(x, vset(1.0f)));
    return vscale2(p, n);
}
