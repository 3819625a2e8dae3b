/* Undefine what a `simd_*.h` defined, before the next is included. */

#undef LANES
#undef MAX_ROWS
#undef V
#undef VI
#undef vload
#undef vstore
#undef vset
#undef vadd
#undef vsub
#undef vmul
#undef vdiv
#undef vmax
#undef vfma
#undef vabs
#undef vround
#undef vsum
#undef vmax_of
#undef vgreater
#undef vscale2
#undef viload
#undef vifloat
#undef INPUT_ZERO
#undef vidot
#undef viinput
#undef vistore_rounded
#undef NAME
