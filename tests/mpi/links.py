"""Network links of hosts made of namespaces, by the kernel's own interfaces (netdevice(7), rtnetlink(7),
linux/if_link.h, linux/veth.h): what `ip` would do, where there is none.

    nsenter -t PID -n python3 links.py up eth0
"""

import fcntl
import os
import socket
import struct
import sys

# ioctls of linux/sockios.h
GET_FLAGS, SET_FLAGS, SET_ADDRESS, SET_MASK = 0x8913, 0x8914, 0x8916, 0x891C
ADD_BRIDGE, ADD_TO_BRIDGE = 0x89A0, 0x89A2
UP = 1
# rtnetlink
NEW_LINK, FLAGS = 16, 0x605  # request, acknowledge, create, exclusive
NAME, INFO, NAMESPACE_OF_PID = 3, 18, 19
INFO_KIND, INFO_DATA, VETH_PEER = 1, 2, 1


def ioctl(number, request):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return fcntl.ioctl(s, number, request)


def request(name, value=b""):
    return struct.pack("16s24s", name.encode(), value)


def set_up(name, up=True):
    flags = struct.unpack_from("16xH", ioctl(GET_FLAGS, request(name)))[0]
    ioctl(SET_FLAGS, request(name, struct.pack("H", flags | UP if up else flags & ~UP)))


def set_address(name, address):
    """IPv4, of a network of 24 bits."""
    for number, value in ((SET_ADDRESS, address), (SET_MASK, "255.255.255.0")):
        of_inet = struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(value))
        ioctl(number, request(name, of_inet))


def add_bridge(name):
    ioctl(ADD_BRIDGE, name.encode() + b"\0")


def add_to_bridge(bridge, name):
    ioctl(ADD_TO_BRIDGE, request(bridge, struct.pack("i", socket.if_nametoindex(name))))


def attribute(kind, value):
    return struct.pack("HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def add_cable(name, peer, pid):
    """A pair of ends: one here, the other in the network of a process."""
    there = attribute(NAME, peer.encode() + b"\0")
    there += attribute(NAMESPACE_OF_PID, struct.pack("I", pid))
    data = attribute(VETH_PEER, bytes(16) + there)
    body = bytes(16) + attribute(NAME, name.encode() + b"\0")
    body += attribute(INFO, attribute(INFO_KIND, b"veth") + attribute(INFO_DATA, data))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:
        s.send(struct.pack("IHHII", 16 + len(body), NEW_LINK, FLAGS, 1, 0) + body)
        error = -struct.unpack_from("i", s.recv(4096), 16)[0]
    if error:
        raise OSError(error, "no cable %s: %s" % (name, os.strerror(error)))


def main(command, *args):
    if command == "up":
        set_up(*args)
    elif command == "address":
        set_address(*args)
    elif command == "try":  # whether this kernel has what hosts need
        set_up("lo")
        add_bridge("probe")
        add_cable("one", "two", os.getpid())
        add_to_bridge("probe", "one")
    else:
        raise SystemExit("links.py has no " + command)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        raise SystemExit("%s: %s" % (" ".join(sys.argv[1:]), error))
