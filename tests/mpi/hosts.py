"""Hosts of one machine: each has namespaces of its own for network, host name, mounts, IPC and
processes, so it differs from a machine of its own in nothing that Ostro or MPI can see but the
processor and the kernel.

    hosts.enter("two_hosts")                 # the test goes on in a private corner of the machine
    network = hosts.Network(["node1", "node2"])
    network["node1"].run(["mpirun", ...])

A host has its own /tmp, /dev/shm and /run in memory, its own /etc/hosts, an address on a bridge that
all share, and an sshd whose keys were made for this run. Everything is gone when the test's process
ends, however it ends: the hosts live in its process namespace.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

SKIPPED = 77  # ctest's SKIP_RETURN_CODE
HOME = "/run/ostro"  # on each host
TOOLS = ("unshare", "nsenter", "ip", "mount", "sshd", "ssh", "ssh-keygen", "mpirun")
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def skip(reason):
    print("skipped: " + reason)
    sys.exit(SKIPPED)


def enter():
    """Runs this program again inside namespaces of its own, or ends it as skipped, saying why."""
    os.environ["PATH"] = PATH
    if os.getpid() == 1:
        return
    if os.geteuid() != 0:
        skip("hosts are made of namespaces, which needs root; this is user %d" % os.geteuid())
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        skip("there is no %s here; tools/deps.sh --slow installs it" % ", ".join(missing))
    inside = ["unshare", *NAMESPACES, "--kill-child"]
    probe = "hostname probe && mount -t tmpfs probe /dev/shm && ip link add probe type bridge"
    probe += " && ip link add one type veth peer name two"
    tried = subprocess.run([*inside, "sh", "-c", probe], stderr=subprocess.PIPE)
    if tried.returncode:
        skip("this kernel or container has no such namespaces: " + tried.stderr.decode().strip())
    os.execvp(inside[0], [*inside, sys.executable, *sys.argv])


def call(*command, **popen):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen)
    if done.returncode:
        raise RuntimeError("%s: %s" % (" ".join(command), done.stdout.decode(errors="replace")))
    return done.stdout.decode()


# What process 1 of a host does. Programs and keys are copied before /tmp, where they may lie, is
# covered.
INIT = """
set -e
hostname {name}
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd {home}/bin {home}/ssh
cp {ssh}/* {home}/ssh
cp {program} {home}/bin/ostro
mount --bind {home}/ssh/hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
read ready
exec "$(command -v sshd)" -D -e -f {home}/ssh/sshd_config
"""

SSHD_CONFIG = """
HostKey {home}/ssh/key
AuthorizedKeysFile {home}/ssh/key.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
"""

SSH_CONFIG = """
Host *
IdentityFile {home}/ssh/key
UserKnownHostsFile {home}/ssh/known_hosts
StrictHostKeyChecking yes
"""


class Host:
    def __init__(self, name, address, program, ssh):
        self.name, self.address, self.link = name, address, "to_" + name
        init = INIT.format(name=name, home=HOME, ssh=ssh, program=program)
        self.process = subprocess.Popen(
            ["unshare", *NAMESPACES, "--kill-child", "bash", "-c", init],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self.first_process()  # as the test sees it; on the host it is 1
        call("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        call("ip", "link", "set", self.link, "master", "switch", "up")
        self.run(["ip", "link", "set", "lo", "up"])
        self.run(["ip", "address", "add", address + "/24", "dev", "eth0"])
        self.run(["ip", "link", "set", "eth0", "up"])
        self.process.stdin.write(b"ready\n")
        self.process.stdin.close()

    def first_process(self):
        children = "/proc/%d/task/%d/children" % (self.process.pid, self.process.pid)
        while True:
            with open(children) as f:
                pids = f.read().split()
            if pids and os.readlink("/proc/%s/ns/uts" % pids[0]) != os.readlink("/proc/1/ns/uts"):
                return int(pids[0])
            time.sleep(0.01)

    def command(self, command):
        """The command line that runs `command` on this host."""
        return ["nsenter", "-t", str(self.pid), "-a", "--wd=" + "/", *map(str, command)]

    def run(self, command, **popen):
        return call(*self.command(command), **popen)

    def put(self, files, folder):
        """Copies files of the test into a folder of the host."""
        self.run(["mkdir", "-p", folder])
        for path in files:
            with open(path, "rb") as f:
                self.run(["cp", "/dev/stdin", os.path.join(folder, os.path.basename(path))], stdin=f)

    def wait_for_sshd(self):
        while True:
            try:
                return self.run(["ssh", "-F", HOME + "/ssh/ssh_config", self.name, "true"])
            except RuntimeError as error:
                if self.process.poll() is not None:
                    raise RuntimeError(self.process.stderr.read().decode()) from error
                time.sleep(0.05)

    def cut(self):
        """Pulls the cable."""
        call("ip", "link", "set", self.link, "down")

    def mend(self):
        call("ip", "link", "set", self.link, "up")

    def power_off(self):
        """The host is silent from one moment to the next, and its processes are gone."""
        self.cut()
        os.kill(self.pid, 9)


class Network:
    def __init__(self, names, program):
        ssh = tempfile.mkdtemp(prefix="ostro_hosts.")
        call("ip", "link", "set", "lo", "up")
        call("ip", "link", "add", "switch", "type", "bridge")
        call("ip", "link", "set", "switch", "up")
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh + "/key")
        with open(ssh + "/key.pub") as f:
            key = f.read()
        addresses = {name: "10.77.0.%d" % (i + 1) for i, name in enumerate(names)}
        contents = {
            "sshd_config": SSHD_CONFIG.format(home=HOME),
            "ssh_config": SSH_CONFIG.format(home=HOME),
            "known_hosts": "".join("%s %s" % (name, key) for name in names),
            "hosts": "127.0.0.1 localhost\n"
            + "".join("%s %s\n" % (a, name) for name, a in addresses.items()),
        }
        for name, content in contents.items():
            with open(os.path.join(ssh, name), "w") as f:
                f.write(content)
        self.hosts = {n: Host(n, a, program, ssh) for n, a in addresses.items()}
        for host in self.hosts.values():
            host.wait_for_sshd()
        shutil.rmtree(ssh)

    def __getitem__(self, name):
        return self.hosts[name]
