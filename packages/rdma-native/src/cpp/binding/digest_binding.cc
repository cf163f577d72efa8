// buildInfo, digests, layouts.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "binding/support.h"
#include "digest/digest.h"
#include "layout/layout.h"
#include "store/files.h"
#include "transport/frame.h"

namespace weightline::binding {

namespace {

// Read at a time: stays in the cache for the digest.
constexpr size_t kReadBytes = 1 << 20;

Napi::Value buildInfo(const Napi::CallbackInfo& info) {
  auto object = Napi::Object::New(info.Env());
#ifdef WEIGHTLINE_SANITIZE
  object.Set("build", "sanitizer");
#else
  object.Set("build", "release");
#endif
  object.Set("minStreamVersion", kMinStreamVersion);
  object.Set("maxStreamVersion", kMaxStreamVersion);
  object.Set("layoutVersion", kLayoutVersion);
  return object;
}

Napi::Value toDigest(Napi::Env env, Algorithm algorithm, const DigestValue& value) { return toBuffer(env, value.data(), digestBytes(algorithm)); }

Napi::Value digest(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Algorithm algorithm = parseAlgorithm(stringArgument(info[0], "algorithm"));
    return toDigest(info.Env(), algorithm, digestOf(algorithm, bytesArgument(info[1], "data")));
  });
}

DigestValue digestRange(Algorithm algorithm, const std::string& path, uint64_t offset, uint64_t bytes) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) throw systemFault(errno, "opening " + path).field("path").value(path);
  Digester digester(algorithm);
  std::vector<uint8_t> buffer(std::min<uint64_t>(bytes, kReadBytes));
  for (uint64_t done = 0; done < bytes;) {
    const size_t wanted = std::min<uint64_t>(buffer.size(), bytes - done);
    const size_t got = files::readFully(file.get(), buffer.data(), wanted, offset + done, path);
    digester.update({buffer.data(), got});
    done += got;
    if (got < wanted) {
      throw Fault(Code::kCorrupt, path + " ends at " + std::to_string(offset + done) + ", " + std::to_string(bytes - done) + " bytes before the range does")
          .field("bytes").value(std::to_string(bytes)).limit(std::to_string(done));
    }
  }
  return digester.finish();
}

Napi::Value digestFile(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Algorithm algorithm = parseAlgorithm(stringArgument(info[0], "algorithm"));
    const std::string path = stringArgument(info[1], "path");
    const uint64_t offset = uint64Argument(info[2], "offset"), bytes = uint64Argument(info[3], "bytes");
    uint64_t end = 0;
    if (__builtin_add_overflow(offset, bytes, &end) || end > INT64_MAX) {
      throw Fault(Code::kInvalidArgument, "offset " + std::to_string(offset) + " + bytes " + std::to_string(bytes) + " is above 2^63 - 1").field("offset").value(std::to_string(offset));
    }
    return PromiseWork<DigestValue>::start(
        info.Env(), [=] { return digestRange(algorithm, path, offset, bytes); },
        [=](Napi::Env env, DigestValue& value) { return toDigest(env, algorithm, value); });
  });
}

Napi::Value recodeLayout(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::vector<uint8_t> layout = encodeLayout(decodeLayout(bytesArgument(info[0], "layout")));
    return toBuffer(info.Env(), layout.data(), layout.size());
  });
}

}  // namespace

void registerDigest(Napi::Env env, Napi::Object exports) {
  exports.Set("buildInfo", Napi::Function::New(env, buildInfo));
  exports.Set("digest", Napi::Function::New(env, digest));
  exports.Set("digestFile", Napi::Function::New(env, digestFile));
  exports.Set("recodeLayout", Napi::Function::New(env, recodeLayout));
}

}  // namespace weightline::binding
