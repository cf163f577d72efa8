#include "base/utf8.h"

#include <cstdint>

namespace weightline {

bool validUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = static_cast<uint8_t>(text[i]);
    size_t more = 0;
    uint32_t point = 0, least = 0;
    if (byte < 0x80) {
      i++;
      continue;
    }
    if ((byte & 0xe0) == 0xc0) {
      more = 1, point = byte & 0x1fu, least = 0x80;
    } else if ((byte & 0xf0) == 0xe0) {
      more = 2, point = byte & 0x0fu, least = 0x800;
    } else if ((byte & 0xf8) == 0xf0) {
      more = 3, point = byte & 0x07u, least = 0x10000;
    } else {
      return false;
    }
    if (text.size() - i <= more) return false;
    for (size_t k = 1; k <= more; k++) {
      const auto next = static_cast<uint8_t>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      point = point << 6 | (next & 0x3fu);
    }
    if (point < least || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) return false;
    i += more + 1;
  }
  return true;
}

void appendUtf8(std::string& text, uint32_t point) {
  const auto tail = [&](int shift) { text += static_cast<char>(0x80 | (point >> shift & 0x3f)); };
  if (point < 0x80) {
    text += static_cast<char>(point);
  } else if (point < 0x800) {
    text += static_cast<char>(0xc0 | point >> 6);
    tail(0);
  } else if (point < 0x10000) {
    text += static_cast<char>(0xe0 | point >> 12);
    tail(6), tail(0);
  } else {
    text += static_cast<char>(0xf0 | point >> 18);
    tail(12), tail(6), tail(0);
  }
}

}  // namespace weightline
