"""`ostro serve` over TLS: what is spoken, what is refused, and certificates that do not fit."""

import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
import time
import warnings

import serving
from serving import PROMPT, ostro


def certificate(folder, name, *options):
    """A self-signed certificate for 127.0.0.1 and its key: (certificate file, key file)."""
    cert, key = (os.path.join(folder, name + end) for end in (".crt", ".key"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert, *(options or ["-nodes"])],
        check=True, capture_output=True)
    return cert, key


class Secure(serving.Server):
    def __init__(self, engine, cert, **flags):
        super().__init__(engine, scheme="https", ssl_certfile=cert, **flags)
        self.context = ssl.create_default_context(cafile=cert)

    def connect(self, timeout=60):
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout,
                                           context=self.context)


class Tls(ostro.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "tiny"))
        cls.cert, cls.key = certificate(cls.shared, "good")
        cls.server = Secure(cls.engine, cls.cert, ssl_keyfile=cls.key, read_timeout=2)
        cls.addClassCleanup(cls.server.kill)

    def raw(self, context):
        plain = socket.create_connection(("127.0.0.1", self.server.port), timeout=20)
        self.addCleanup(plain.close)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def test_answers_and_streams(self):
        plain = serving.Server(self.engine)
        self.addCleanup(plain.kill)
        whole = self.server.complete(max_tokens=60).json["choices"][0]["text"]
        self.assertEqual(whole, plain.complete(max_tokens=60).json["choices"][0]["text"])
        events = self.server.complete(max_tokens=60, stream=True).events
        self.assertEqual("".join(e["choices"][0]["text"] for e in events), whole)
        # Bodies larger than a TLS record, both ways.
        text = " ".join("word%d" % i for i in range(40000))
        tokens = self.server.post("/tokenize", {"prompt": text}).json["tokens"]
        self.assertEqual(self.server.post("/detokenize", {"tokens": tokens}).json["prompt"], text)

    def test_a_connection_is_used_again(self):
        connection = self.server.connect()
        self.addCleanup(connection.close)
        for stream in (True, False) * 5:
            connection.request("POST", "/v1/completions",
                               json.dumps({"prompt": PROMPT, "max_tokens": 5, "stream": stream}))
            self.assertEqual(connection.getresponse().read().endswith(b"[DONE]\n\n"), stream)

    def test_a_client_that_leaves_frees_its_slot(self):
        body = {"prompt": PROMPT, "max_tokens": 1000, "ignore_eos": True, "n": 8, "stream": True}
        connection, response = self.server.open("POST", "/v1/completions", body)
        response.read(200)
        response.close()
        connection.close()
        self.server.wait_for(lambda m: m["ostro_requests_running"] == 0, "its slot is free", 5)

    def test_versions(self):
        warnings.simplefilter("ignore", DeprecationWarning)  # of TLS 1.1
        for version, spoken in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True),
                                (ssl.TLSVersion.TLSv1_1, False)):
            context = ssl.create_default_context(cafile=self.cert)
            context.set_ciphers("DEFAULT:@SECLEVEL=0")  # the client would offer the old one
            context.minimum_version = context.maximum_version = version
            if not spoken:
                with self.assertRaises(ssl.SSLError):
                    self.raw(context)
                continue
            with self.raw(context) as s:
                s.sendall(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
                received = b""
                while chunk := s.recv(4096):  # the end is announced: no error
                    received += chunk
            self.assertTrue(received.endswith(b'{"status":"ok"}'), received)

    def test_plain_http_is_told_so(self):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
            s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while chunk := s.recv(4096):
                received += chunk
        head, body = received.split(b"\r\n\r\n", 1)
        self.assertTrue(head.startswith(b"HTTP/1.1 400 Bad Request\r\n"), head)
        self.assertIn(b"\r\nConnection: close", head)
        self.assertIn("https://", json.loads(body)["error"]["message"])

    def test_a_handshake_that_stalls_is_closed(self):
        for data in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01" + b"\x00" * 20):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
                begin = time.monotonic()
                s.sendall(data)
                while s.recv(4096):
                    pass
                self.assertLess(time.monotonic() - begin, 6)
        with self.raw(self.server.context) as s:  # and so is a request behind a good one
            s.sendall(b"POST /tokenize HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
            received = b""
            while chunk := s.recv(4096):
                received += chunk
        self.assertTrue(received.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), received)

    def test_a_stream_is_drained(self):
        server = Secure(self.engine, self.cert, ssl_keyfile=self.key)
        self.addCleanup(server.kill)
        body = {"prompt": PROMPT, "max_tokens": 500, "ignore_eos": True, "stream": True}
        connection, response = server.open("POST", "/v1/completions", body)
        text = [response.read(200)]
        reader = threading.Thread(target=lambda: text.append(response.read()))
        reader.start()
        self.assertEqual(server.stop(), 0)
        reader.join(20)
        connection.close()
        self.assertTrue(b"".join(text).endswith(b"data: [DONE]\n\n"))

    def test_certificates_that_do_not_fit(self):
        other, other_key = certificate(self.shared, "other")
        _, locked = certificate(self.shared, "locked", "-passout", "pass:word")
        both = self.path("both.pem")
        with open(both, "wb") as out:
            for part in (self.cert, self.key):
                with open(part, "rb") as f:
                    out.write(f.read())
        odd = self.write("odd.pem", "nothing of the kind\n")

        def refused(match, **flags):
            args = {"engine_dir": self.engine, "tokenizer_dir": ostro.TINY, **flags}
            self.refused("serve", *ostro.flags_of(args), match=match)

        refused("there is no --ssl_certfile", ssl_keyfile=self.key)
        refused("none.crt", ssl_certfile=self.path("none.crt"))
        refused("none.key", ssl_certfile=self.cert, ssl_keyfile=self.path("none.key"))
        refused("odd.pem is not a certificate in PEM", ssl_certfile=odd)
        refused("odd.pem is not a private key", ssl_certfile=self.cert, ssl_keyfile=odd)
        refused("good.crt is not a private key", ssl_certfile=self.cert)
        refused("locked.key is not a private key in PEM without a passphrase",
                ssl_certfile=self.cert, ssl_keyfile=locked)
        refused("other.key is not that of the certificate .*good.crt", ssl_certfile=self.cert,
                ssl_keyfile=other_key)
        server = Secure(self.engine, both)  # the key in the certificate's file
        self.addCleanup(server.kill)
        server.context = self.server.context
        self.assertEqual(server.get("/health").status, 200)


if __name__ == "__main__":
    ostro.main()
