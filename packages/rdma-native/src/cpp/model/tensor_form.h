// How somebody else describes one tensor in JSON: a name, `dtype` and `shape`, as the safetensors format has them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fault.h"
#include "base/json.h"

namespace weightline {

// Reads and checks descriptions; what is wrong becomes the fault that `fault` makes of a sentence.
class TensorForm {
 public:
  explicit TensorForm(std::function<Fault(const std::string&)> fault) : fault_(std::move(fault)) {}

  // `where` names the tensor in messages.
  void checkName(const std::string& name, const std::string& where) const;
  void read(const json::Value& object, const std::string& where, std::string& dtype, std::vector<uint64_t>& shape) const;
  // Bytes of a tensor; nothing for a dtype that nobody knows yet.
  std::optional<uint64_t> bytesOf(std::string_view dtype, const std::vector<uint64_t>& shape, const std::string& where) const;
  // The one member of that name, of that type.
  const json::Value& need(const json::Value& object, const char* key, json::Value::Type type, const std::string& where) const;

 private:
  const std::function<Fault(const std::string&)> fault_;
};

}  // namespace weightline
