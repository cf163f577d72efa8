#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "base/utf8.h"
#include "fuzz.h"

namespace weightline::fuzz {

void broken(const std::string& what) {
  std::fprintf(stderr, "fuzz: broken: %s\n", what.c_str());
  std::abort();
}

void expectFault(const Fault& fault, std::initializer_list<Code> codes) {
  const std::string said = std::string(codeName(fault.code())) + ": " + fault.what();
  bool known = false;
  for (const Code code : codes) known = known || code == fault.code();
  if (!known) broken("a fault of another code: " + said);
  if (fault.field().empty()) broken("a fault that names no field: " + said);
  for (const std::string_view text : {std::string_view(fault.what()), std::string_view(fault.field()), std::string_view(fault.value()), std::string_view(fault.limit())}) {
    if (!validUtf8(text)) broken("a fault whose words are not UTF-8: " + said);
  }
}

const std::string& privateFolder() {
  static const pid_t owner = ::getpid();
  static const std::string folder = [] {
    std::string made = "/dev/shm/weightline-fuzz-XXXXXX";
    if (::mkdtemp(made.data()) == nullptr) broken("no folder can be made in /dev/shm");
    return made;
  }();
  static const int registered = std::atexit([] {
    if (::getpid() == owner) std::filesystem::remove_all(folder);
  });
  static_cast<void>(registered);
  return folder;
}

}  // namespace weightline::fuzz
