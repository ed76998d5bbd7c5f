"""What the end-to-end tests share: the program, temporary directories, .npy and safetensors files.

A test file is run as `python3 golden_test.py --ostro build/cpu/bin/ostro`, or with OSTRO in the
environment. Python 3 and its standard library only.
"""

import array
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GOLDEN = os.path.join(SOURCE, "tests", "golden")
TINY = os.path.join(SOURCE, "models", "tiny-mixtral")

# The shape of a small dummy engine.
SMALL = {
    "n_layer": 1,
    "n_embd": 64,
    "n_head": 4,
    "n_kv_head": 2,
    "inter_size": 96,
    "vocab_size": 128,
    "n_positions": 64,
}

_binary = None


def binary():
    """The program under test."""
    found = _binary or os.environ.get("OSTRO")
    if not found:
        raise SystemExit("give --ostro PATH or set OSTRO")
    return os.path.abspath(found)


def environment():
    """Without what an mpirun around the tests would have left."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_"))}


class Result:
    def __init__(self, args, code, out, err):
        self.args, self.code, self.out, self.err = args, code, out, err

    def __str__(self):
        return "$ %s\nexit %d\nstdout: %s\nstderr: %s" % (
            " ".join(self.args),
            self.code,
            self.out,
            self.err,
        )


def run_command(args, timeout=120, cwd=None, env=None, **popen):
    args = [str(a) for a in args]
    done = subprocess.run(
        args,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env=env or environment(),
        **popen
    )
    return Result(
        args,
        done.returncode,
        done.stdout.decode("utf-8", "surrogateescape"),
        done.stderr.decode("utf-8", "surrogateescape"),
    )


def flags_of(flags):
    """{"tp_size": 2, "streaming": True, "input_text": ["a", "b"]} as arguments."""
    args = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        args.append("--" + name)
        if value is True:
            continue
        args += [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]
    return args


class Case(unittest.TestCase):
    """A test with a directory of its own, `self.dir`, and one for the whole class, `cls.shared`."""

    @classmethod
    def setUpClass(cls):
        cls.shared = tempfile.mkdtemp(prefix="ostro_e2e.")
        cls.addClassCleanup(shutil.rmtree, cls.shared, ignore_errors=True)

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="ostro_e2e.")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def write(self, name, content):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(content if isinstance(content, bytes) else content.encode())
        return path

    def ostro(self, *args, code=0, **run):
        """Runs the program and checks its exit code."""
        result = run_command([binary(), *args], **run)
        self.assertEqual(result.code, code, str(result))
        return result

    def refused(self, *args, code=2, text=None, match=None, **run):
        """Runs a command that must fail with one line on stderr: the whole of it, or a pattern."""
        result = self.ostro(*args, code=code, **run)
        lines = [l for l in result.err.splitlines() if not l.startswith("[ostro] [warning]")]
        self.assertEqual(len(lines), 1, str(result))
        self.assertEqual(result.out, "", str(result))
        self.assertTrue(lines[0].startswith("ostro: error: "), str(result))
        message = lines[0][len("ostro: error: ") :]
        if text is not None:
            self.assertEqual(message, text)
        if match is not None:
            self.assertRegex(message, match)
        return message

    def generate(self, engine, prompts, tokens, launcher=(), **flags):
        """Greedy ids of each prompt of ids. Runs to the end unless end_id says otherwise."""
        csv = self.path("prompts.csv")
        out = self.path("out.csv")
        with open(csv, "w") as f:
            f.writelines(",".join(map(str, ids)) + "\n" for ids in prompts)
        flags = {"end_id": -1, "max_output_len": tokens, **flags}
        result = run_command(
            [
                *launcher,
                binary(),
                "run",
                "--engine_dir",
                engine,
                "--input_file",
                csv,
                "--output_csv",
                out,
                *flags_of(flags),
            ]
        )
        self.assertEqual(result.code, 0, str(result))
        return read_csv(out)

    def assert_golden_models_run(self, **flags):
        """Each model of tests/golden, built with `flags`, generates; twins generate the same."""
        tokens, twins = {}, {}
        for name in sorted(os.listdir(GOLDEN)):
            folder = os.path.join(GOLDEN, name)
            if not os.path.isfile(os.path.join(folder, "golden.json")):
                continue
            golden = read_json(folder, "golden.json")
            prompts = [c["input_ids"] for c in golden["cases"]]
            with self.subTest(name):
                engine = build(self.path(name), folder, **flags)
                tokens[name] = self.generate(engine, prompts, 4)
                self.assertEqual([len(ids) for ids in tokens[name]], [4] * len(prompts))
            twins[name] = golden.get("same_tokens_as")
        self.assertTrue(any(twins.values()))
        for name, twin in twins.items():
            if twin:
                self.assertEqual(tokens[name], tokens[twin], name)

    def assert_same_tokens(self, got, want, logits, tie=1e-4, what=""):
        """Sequences are equal up to the first difference, which must be a tie of `logits`.

        logits(i) are the logits that chose want[i]: between the two candidates there may lie at
        most `tie` nats (invariant tp.same_tokens). Returns whether they are equal throughout.
        """
        self.assertEqual(len(got), len(want), what)
        for i, (a, b) in enumerate(zip(got, want)):
            if a != b:
                row = logits(i)
                self.assertLess(
                    abs(row[a] - row[b]), tie, "%s: token %d is %d instead of %d" % (what, i, a, b)
                )
                return False
        return True


class BadInput(Case):
    """A test of commands that must fail and leave the test's directory as it was."""

    def refused(self, *args, **kw):
        before = listing(self.dir)
        message = super().refused(*args, cwd=self.dir, **kw)
        self.assertEqual(listing(self.dir), before)
        return message

    def copy(self, source, name="model"):
        return shutil.copytree(source, self.path(name))


def build(engine, model_dir=TINY, **flags):
    """Builds an engine quietly; returns its directory."""
    flags = {"dtype": "float32", "log_level": "error", **flags}
    result = run_command(
        [binary(), "build", "--model_dir", model_dir, "--output_dir", engine, *flags_of(flags)]
    )
    if result.code != 0:
        raise AssertionError(str(result))
    return engine


def read_csv(path):
    with open(path) as f:
        return [[int(x) for x in line.split(",")] if line.strip() else [] for line in f]


def read_json(*parts):
    with open(os.path.join(*parts)) as f:
        return json.load(f)


def golden_prompts(count):
    """Token ids of the first cases of the golden generations of tiny-mixtral."""
    cases = read_json(GOLDEN, "generation.json")["cases"]
    return [c["input_ids"] for c in cases[:count]]


class Npy:
    """A C-order .npy file of float32, int32 or int64."""

    TYPES = {"<f4": "f", "<i4": "i", "<i8": "q"}

    def __init__(self, path):
        with open(path, "rb") as f:
            content = f.read()
        if content[:8] != b"\x93NUMPY\x01\x00":
            raise ValueError(path + " is not .npy 1.0")
        (length,) = struct.unpack("<H", content[8:10])
        header = content[10 : 10 + length].decode("latin1")
        if (10 + length) % 64 or not header.endswith("\n"):
            raise ValueError(path + " has a header that is not padded as NumPy does")
        self.dtype = re.search(r"'descr': '([^']*)'", header).group(1)
        if "'fortran_order': False" not in header:
            raise ValueError(path + " is in Fortran order")
        shape = re.search(r"'shape': \(([^)]*)\)", header).group(1)
        self.shape = tuple(int(n) for n in shape.replace(" ", "").split(",") if n)
        self.values = array.array(self.TYPES[self.dtype], content[10 + length :])
        if len(self.values) != math.prod(self.shape):
            raise ValueError("%s has %d values for %s" % (path, len(self.values), self.shape))

    def row(self, *index):
        """The slice at the first indices, flat."""
        size = math.prod(self.shape[len(index) :])
        at = 0
        for i, n in zip(index, self.shape):
            at = at * n + i
        return self.values[at * size : (at + 1) * size]


def write_npy(path, typecode, shape, values):
    dtype = {v: k for k, v in Npy.TYPES.items()}[typecode]
    dims = "".join("%d, " % n for n in shape)
    header = "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }" % (dtype, dims)
    header += " " * (-(len(header) + 11) % 64) + "\n"
    with open(path, "wb") as f:
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        f.write(array.array(typecode, values).tobytes())
    return path


def log_softmax(row):
    most = max(row)
    total = math.log(math.fsum(math.exp(x - most) for x in row)) + most
    return [x - total for x in row]


def log_prob(row, token):
    most = max(row)
    return row[token] - most - math.log(math.fsum(math.exp(x - most) for x in row))


def largest_difference(a, b):
    assert len(a) == len(b), (len(a), len(b))
    return max((abs(x - y) for x, y in zip(a, b)), default=0.0)


class Safetensors:
    """A safetensors file in memory, to be written again with anything wrong in it."""

    def __init__(self, path):
        with open(path, "rb") as f:
            content = f.read()
        (length,) = struct.unpack("<Q", content[:8])
        self.header = json.loads(content[8 : 8 + length])
        self.data = content[8 + length :]

    def bytes(self):
        text = json.dumps(self.header).encode()
        return struct.pack("<Q", len(text)) + text + self.data

    def write(self, path):
        with open(path, "wb") as f:
            f.write(self.bytes())


def listing(directory):
    """Every path below a directory with its size."""
    found = {}
    for folder, _, files in os.walk(directory):
        found[os.path.relpath(folder, directory)] = None
        for name in files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, directory)] = os.lstat(path).st_size
    return found


def main():
    global _binary
    if "--ostro" in sys.argv:
        at = sys.argv.index("--ostro")
        _binary = sys.argv[at + 1]
        del sys.argv[at : at + 2]
    if not os.access(binary(), os.X_OK):
        raise SystemExit(binary() + " is not a program: build it first")
    unittest.main(verbosity=2)
