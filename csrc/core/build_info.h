// What this binary was built with, for `clustermim info`.
#pragma once

namespace clustermim {

const char* build_compiler();
const char* build_type();
const char* build_flags();  // of all units; the ISA units add theirs

}  // namespace clustermim
