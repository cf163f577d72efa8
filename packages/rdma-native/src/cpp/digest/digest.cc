#include "digest/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <vector>

#include "base/fault.h"
#include "digest/xxh3.h"

// libcrypto as Node exports it to addons; declared here because the headers of another OpenSSL might be found instead.
extern "C" {
struct evp_md_ctx_st;
struct evp_md_st;
evp_md_ctx_st* EVP_MD_CTX_new(void);
void EVP_MD_CTX_free(evp_md_ctx_st* context);
const evp_md_st* EVP_sha256(void);
int EVP_DigestInit_ex(evp_md_ctx_st* context, const evp_md_st* type, void* engine);
int EVP_DigestUpdate(evp_md_ctx_st* context, const void* data, size_t bytes);
int EVP_DigestFinal_ex(evp_md_ctx_st* context, unsigned char* out, unsigned int* bytes);
}

namespace weightline {

namespace {

constexpr size_t kSha256BlockBytes = 64;

xxh3::OneShot chooseXxh3() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) return xxh3::avx2;
#endif
  return xxh3::baseline;
}

// A SHA-256 context that frees itself.
class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) { start(); }
  ~Sha256() { EVP_MD_CTX_free(context_); }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::span<const uint8_t> data) { EVP_DigestUpdate(context_, data.data(), data.size()); }
  DigestValue finish() {
    DigestValue value{};
    EVP_DigestFinal_ex(context_, value.data(), nullptr);
    start();
    return value;
  }

 private:
  void start() {
    if (context_ == nullptr || EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) != 1) {
      throw Fault(Code::kInternal, "SHA-256 is not to be had in this process");
    }
  }
  evp_md_ctx_st* context_;
};

DigestValue padded(const XXH128_hash_t& hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  DigestValue value{};
  std::memcpy(value.data(), canonical.digest, sizeof(canonical.digest));
  return value;
}

}  // namespace

Algorithm parseAlgorithm(std::string_view name) {
  if (name == "xxh3-128") return Algorithm::kXxh3;
  if (name == "sha-256") return Algorithm::kSha256;
  throw Fault(Code::kInvalidArgument, "digest algorithm \"" + std::string(name) + "\" is not known").field("algorithm").value(std::string(name)).limit("xxh3-128, sha-256");
}

std::string_view algorithmName(Algorithm algorithm) { return algorithm == Algorithm::kXxh3 ? "xxh3-128" : "sha-256"; }

DigestValue digestOf(Algorithm algorithm, std::span<const uint8_t> data) {
  static const xxh3::OneShot kOneShot = chooseXxh3();
  if (algorithm == Algorithm::kXxh3) {
    DigestValue value{};
    kOneShot(data.data(), data.size(), value.data());
    return value;
  }
  Sha256 sha;
  sha.update(data);
  return sha.finish();
}

struct Digester::State {
  explicit State(Algorithm a) : algorithm(a), xxh(XXH3_createState()) { XXH3_128bits_reset(xxh); }
  ~State() { XXH3_freeState(xxh); }
  Algorithm algorithm;
  XXH3_state_t* xxh;
  Sha256 sha;
};

Digester::Digester(Algorithm algorithm) : state_(std::make_unique<State>(algorithm)) {}
Digester::~Digester() = default;

void Digester::update(std::span<const uint8_t> data) {
  if (state_->algorithm == Algorithm::kSha256) {
    state_->sha.update(data);
  } else {
    XXH3_128bits_update(state_->xxh, data.data(), data.size());
  }
}

DigestValue Digester::finish() {
  if (state_->algorithm == Algorithm::kSha256) return state_->sha.finish();
  const DigestValue value = padded(XXH3_128bits_digest(state_->xxh));
  XXH3_128bits_reset(state_->xxh);
  return value;
}

DigestValue hmacSha256(std::span<const uint8_t> key, std::span<const uint8_t> data) {
  std::array<uint8_t, kSha256BlockBytes> block{};
  if (key.size() > block.size()) {
    const DigestValue hashed = digestOf(Algorithm::kSha256, key);
    std::memcpy(block.data(), hashed.data(), hashed.size());
  } else {
    std::memcpy(block.data(), key.data(), key.size());
  }
  const auto keyed = [&](uint8_t pad, std::span<const uint8_t> message) {
    std::array<uint8_t, kSha256BlockBytes> mixed = block;
    for (uint8_t& byte : mixed) byte = static_cast<uint8_t>(byte ^ pad);
    Sha256 sha;
    sha.update(mixed);
    sha.update(message);
    return sha.finish();
  };
  const DigestValue inner = keyed(0x36, data);
  return keyed(0x5c, inner);
}

std::string toHex(std::span<const uint8_t> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const uint8_t byte : bytes) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

}  // namespace weightline
