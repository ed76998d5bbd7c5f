// The certificate and key of a server that speaks HTTPS.
#pragma once

#include <filesystem>
#include <memory>

namespace ostro::server {

struct Tls;  // its certificate chain and private key, for TLS 1.2 and 1.3

// Reads PEM files: the server's certificate, followed by those that lead to its root if there are
// any, and its private key, which must not have a passphrase. Throws InvalidArgument if a file
// cannot be read or holds something else, or if the key is another certificate's.
std::shared_ptr<Tls> load_tls(const std::filesystem::path& certfile,
                              const std::filesystem::path& keyfile);

}  // namespace ostro::server
