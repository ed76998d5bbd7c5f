// A library that is no NCCL but says its version: one too old, or, without more of it, too poor.
extern "C" int ncclGetVersion(int* version) {
  *version = OSTRO_FAKE_VERSION;
  return 0;
}
