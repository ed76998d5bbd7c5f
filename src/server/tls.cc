#include "server/tls.h"

#include <string>

#include "base/error.h"
#include "base/file.h"
#include "server/client_stream.h"

namespace ostro::server {
namespace {

namespace ssl = boost::asio::ssl;

constexpr std::size_t kLargestPemBytes = 1 << 20;

// The library says little: "no start line (SSL routines)".
template <class Use>
void use(const char* what, const std::filesystem::path& file, Use use) {
  boost::system::error_code error;
  use(error);
  OSTRO_REQUIRE(!error, file.string(), " is not ", what, ": ", error.message());
}

}  // namespace

std::shared_ptr<Tls> load_tls(const std::filesystem::path& certfile,
                              const std::filesystem::path& keyfile) {
  const std::string chain = read_file(certfile, kLargestPemBytes);
  const std::string key = read_file(keyfile, kLargestPemBytes);
  auto tls = std::make_shared<Tls>();
  ssl::context& context = tls->context;
  context.set_options(ssl::context::default_workarounds | SSL_OP_NO_RENEGOTIATION |
                      SSL_OP_CIPHER_SERVER_PREFERENCE);
  OSTRO_CHECK(SSL_CTX_set_min_proto_version(context.native_handle(), TLS1_2_VERSION) == 1,
              "OpenSSL does not take TLS 1.2 as the least version");
  // Without this OpenSSL would ask for the passphrase on the terminal.
  context.set_password_callback([](std::size_t, ssl::context::password_purpose) { return ""; });
  use("a certificate in PEM", certfile, [&](boost::system::error_code& e) {
    context.use_certificate_chain(boost::asio::buffer(chain), e);
  });
  // Loading a key compares it with the certificate, so an odd pair is told apart from an odd file
  // by loading it alone first.
  ssl::context alone(ssl::context::tls_server);
  alone.set_password_callback([](std::size_t, ssl::context::password_purpose) { return ""; });
  use("a private key in PEM without a passphrase", keyfile, [&](boost::system::error_code& e) {
    alone.use_private_key(boost::asio::buffer(key), ssl::context::pem, e);
  });
  boost::system::error_code mismatch;
  context.use_private_key(boost::asio::buffer(key), ssl::context::pem, mismatch);
  OSTRO_REQUIRE(!mismatch, "the key ", keyfile.string(), " is not that of the certificate ",
                certfile.string(), ": ", mismatch.message());
  return tls;
}

}  // namespace ostro::server
