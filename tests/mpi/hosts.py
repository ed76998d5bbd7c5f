"""Hosts of one machine: each has namespaces of its own for network, host name, mounts, IPC and
processes, so it differs from a machine of its own in nothing that Ostro or MPI can see but the
processor and the kernel.

    hosts.enter("two_hosts")                 # the test goes on in a private corner of the machine
    network = hosts.Network(["node1", "node2"])
    network["node1"].run(["mpirun", ...])

A host has its own /tmp, /dev/shm and /run in memory, its own /etc/hosts, an address on a bridge that
all share, and an sshd whose keys were made for this run. Where there is no sshd, mpirun runs in the
corner itself and reaches the hosts by Network.agent. Everything is gone when the test's process
ends, however it ends: the hosts live in its process namespace.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

import links

SKIPPED = 77  # ctest's SKIP_RETURN_CODE
HOME = "/run/ostro"  # on each host
TOOLS = ("unshare", "nsenter", "mount", "mpirun")
SSH_TOOLS = ("sshd", "ssh", "ssh-keygen")
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def skip(reason):
    print("skipped: " + reason)
    sys.exit(SKIPPED)


def enter(sshd=True):
    """Runs this program again inside namespaces of its own, or ends it as skipped, saying why."""
    os.environ["PATH"] = PATH
    if os.getpid() == 1:
        return
    if os.geteuid() != 0:
        skip("hosts are made of namespaces, which needs root; this is user %d" % os.geteuid())
    missing = [tool for tool in TOOLS + (SSH_TOOLS if sshd else ()) if not shutil.which(tool)]
    if missing:
        skip("there is no %s here; tools/deps.sh --slow installs it" % ", ".join(missing))
    inside = ["unshare", *NAMESPACES, "--kill-child"]
    probe = 'hostname probe && mount -t tmpfs probe /dev/shm && exec "$0" "$1" try'
    probe = [*("sh", "-c", probe), sys.executable, links.__file__]
    tried = subprocess.run([*inside, *probe], stderr=subprocess.PIPE)
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
exec {wait}
"""
SSHD = '"$(command -v sshd)" -D -e -f {home}/ssh/sshd_config'

# What mpirun calls in the place of ssh: with the host, then the command.
AGENT = """#!/bin/sh
host=$1
shift
exec nsenter -t "$(cat {folder}/$host.pid)" -a --wd=/ sh -c "$*"
"""
CORNER = "10.77.0.254"  # this process's own address on the bridge

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
    def __init__(self, name, address, program, files, sshd):
        self.name, self.address, self.link = name, address, "to_" + name
        wait = SSHD.format(home=HOME) if sshd else "sleep infinity"
        init = INIT.format(name=name, home=HOME, ssh=files, program=program, wait=wait)
        self.process = subprocess.Popen(
            ["unshare", *NAMESPACES, "--kill-child", "bash", "-c", init],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self.first_process()  # as the test sees it; on the host it is 1
        links.add_cable(self.link, "eth0", self.pid)
        links.add_to_bridge("switch", self.link)
        links.set_up(self.link)
        for change in (["up", "lo"], ["address", "eth0", address], ["up", "eth0"]):
            call(*("nsenter", "-t", str(self.pid), "-n"), sys.executable, links.__file__, *change)
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

    def wait_until_ready(self):
        """Its process 1 has done what it has to."""
        while True:
            with open("/proc/%d/comm" % self.pid) as f:
                if f.read().strip() == "sleep":
                    return
            if self.process.poll() is not None:
                raise RuntimeError(self.process.stderr.read().decode())
            time.sleep(0.01)

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
        links.set_up(self.link, False)

    def mend(self):
        links.set_up(self.link)

    def power_off(self):
        """The host is silent from one moment to the next, and its processes are gone."""
        self.cut()
        os.kill(self.pid, 9)


class Network:
    def __init__(self, names, program, sshd=True):
        files = tempfile.mkdtemp(prefix="ostro_hosts.")
        links.set_up("lo")
        links.add_bridge("switch")
        links.set_up("switch")
        addresses = {name: "10.77.0.%d" % (i + 1) for i, name in enumerate(names)}
        known = "".join("%s %s\n" % (a, name) for name, a in addresses.items())
        contents = {"hosts": "127.0.0.1 localhost\n" + known}
        if sshd:
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", files + "/key")
            with open(files + "/key.pub") as f:
                key = f.read()
            contents["sshd_config"] = SSHD_CONFIG.format(home=HOME)
            contents["ssh_config"] = SSH_CONFIG.format(home=HOME)
            contents["known_hosts"] = "".join("%s %s" % (name, key) for name in names)
        for name, content in contents.items():
            with open(os.path.join(files, name), "w") as f:
                f.write(content)
        self.hosts = {n: Host(n, a, program, files, sshd) for n, a in addresses.items()}
        if sshd:
            for host in self.hosts.values():
                host.wait_for_sshd()
            shutil.rmtree(files)
        else:
            self.join(files)

    def join(self, files):
        """Makes this process's corner one more host, that starts programs on the others."""
        self.agent = os.path.join(files, "agent")
        with open(self.agent, "w") as f:
            f.write(AGENT.format(folder=files))
        os.chmod(self.agent, 0o755)
        for name, host in self.hosts.items():
            host.wait_until_ready()
            with open(os.path.join(files, name + ".pid"), "w") as f:
                f.write(str(host.pid))
            # Nothing calls it there, but mpirun's daemons look for it.
            host.put([self.agent], files)
            host.run(["chmod", "755", self.agent])
        links.set_address("switch", CORNER)
        call("mount", "--bind", files + "/hosts", "/etc/hosts")

    def __getitem__(self, name):
        return self.hosts[name]
