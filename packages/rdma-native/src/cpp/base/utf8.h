// UTF-8 as names, paths and JSON texts must have it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weightline {

// True for well-formed UTF-8: no overlong form, no surrogate, nothing above U+10FFFF.
bool validUtf8(std::string_view text);
void appendUtf8(std::string& text, uint32_t codePoint);

}  // namespace weightline
