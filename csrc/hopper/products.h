// Products of a warpgroup (wgmma), as inline PTX.
#pragma once

#include "hopper/types.h"

namespace clustermim::hopper {

CMIM_DEVICE void products_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
CMIM_DEVICE void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most `Left` of the committed groups are under way.
template <int Left>
CMIM_DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}
// The compiler must not read them before this.
template <int kSums>
CMIM_DEVICE void products_are_in(float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Inline PTX has no names for operands: first come the sums, eight to a group, then what is read.
#define CMIM_GROUP(i)                                                                        \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), \
      "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define CMIM_GROUPS_1 CMIM_GROUP(0)
#define CMIM_GROUPS_2 CMIM_GROUPS_1, CMIM_GROUP(8)
#define CMIM_GROUPS_3 CMIM_GROUPS_2, CMIM_GROUP(16)
#define CMIM_GROUPS_4 CMIM_GROUPS_3, CMIM_GROUP(24)
#define CMIM_GROUPS_5 CMIM_GROUPS_4, CMIM_GROUP(32)
#define CMIM_GROUPS_6 CMIM_GROUPS_5, CMIM_GROUP(40)
#define CMIM_GROUPS_7 CMIM_GROUPS_6, CMIM_GROUP(48)
#define CMIM_GROUPS_8 CMIM_GROUPS_7, CMIM_GROUP(56)
#define CMIM_PLACES_1 "%0,%1,%2,%3,%4,%5,%6,%7"
#define CMIM_PLACES_2 CMIM_PLACES_1 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define CMIM_PLACES_3 CMIM_PLACES_2 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define CMIM_PLACES_4 CMIM_PLACES_3 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define CMIM_PLACES_5 CMIM_PLACES_4 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define CMIM_PLACES_6 CMIM_PLACES_5 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define CMIM_PLACES_7 CMIM_PLACES_6 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define CMIM_PLACES_8 CMIM_PLACES_7 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define CMIM_PRODUCT_OF(types, groups, n, a_, b_, add_, mn_a, mn_b)                             \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " add_                                            \
               ", 0;\n"                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." types " {" CMIM_PLACES_##groups \
               "}, " a_ ", " b_ ", p, 1, 1, " mn_a ", " mn_b ";}\n"                             \
               : CMIM_GROUPS_##groups                                                           \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kA)),         \
                 "n"(static_cast<int>(kB)))
#define CMIM_PRODUCT(groups, n, ...)                        \
  if constexpr (kSums == 8 * groups) {                      \
    if constexpr (kType == Half::float16)                   \
      CMIM_PRODUCT_OF("f16.f16", groups, n, __VA_ARGS__);   \
    else                                                    \
      CMIM_PRODUCT_OF("bf16.bf16", groups, n, __VA_ARGS__); \
  }

// sums = A B^T, or += where `add`: A 64 x 16, B N x 16, N = 2 kSums, in shared memory, by
// descriptor. Thread t of the warpgroup has row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2) and column
// 8 (i / 4) + 2 (t % 4) + i % 2 in sums[i].
template <Half kType, Major kA, Major kB, int kSums>
CMIM_DEVICE void product(float (&sums)[kSums], uint64 a, uint64 b, bool add) {
  static_assert(kSums % 8 == 0 && kSums <= 64, "N is a multiple of 16, and at most 128");
  static_assert(static_cast<int>(Major::k) == 0 && static_cast<int>(Major::mn) == 1, "as in PTX");
  CMIM_PRODUCT(1, "16", "%8", "%9", "%10", "%11", "%12")
  CMIM_PRODUCT(2, "32", "%16", "%17", "%18", "%19", "%20")
  CMIM_PRODUCT(3, "48", "%24", "%25", "%26", "%27", "%28")
  CMIM_PRODUCT(4, "64", "%32", "%33", "%34", "%35", "%36")
  CMIM_PRODUCT(5, "80", "%40", "%41", "%42", "%43", "%44")
  CMIM_PRODUCT(6, "96", "%48", "%49", "%50", "%51", "%52")
  CMIM_PRODUCT(7, "112", "%56", "%57", "%58", "%59", "%60")
  CMIM_PRODUCT(8, "128", "%64", "%65", "%66", "%67", "%68")
}
#undef CMIM_PRODUCT
#undef CMIM_PRODUCT_OF

}  // namespace clustermim::hopper
