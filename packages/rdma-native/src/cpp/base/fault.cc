#include "base/fault.h"

#include <array>
#include <cerrno>
#include <cstring>

namespace weightline {

std::string_view codeName(Code code) {
  static constexpr std::array<std::string_view, 13> kNames = {
      "NotFound",          "Unavailable", "DeadlineExceeded", "Refused",       "InvalidArgument", "PermissionDenied",
      "ResourceExhausted", "Corrupt",     "InUse",            "AlreadyExists", "Cancelled",       "Internal",
      "Closed"};
  return kNames[static_cast<size_t>(code)];
}

Fault systemFault(int error, const std::string& what) {
  Code code = Code::kInternal;
  if (error == ENOSPC || error == EMFILE || error == ENFILE || error == ENOMEM) code = Code::kResourceExhausted;
  if (error == ENOENT) code = Code::kNotFound;
  if (error == EACCES || error == EPERM) code = Code::kPermissionDenied;
  return Fault(code, what + ": " + std::strerror(error));
}

}  // namespace weightline
