"""Subvolumes nested in another one: found, and deleted, by number.

A container makes, moves and swaps directories and links in its volume at any moment. So no path
leads to what is nested in it: the tree of roots says which trees lie in which, and a directory is
reached step by step from a descriptor, each step compared with the inode that it must lead to. The
items are those of linux/btrfs_tree.h.
"""

import errno
import fcntl
import math
import os
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from buttervolume.errors import CommandFailed
from buttervolume.system import command
from buttervolume.system.btrfs import ROOT_INODE, Directory, opened
from buttervolume.system.trees import TREE_OF_ROOTS, Search

_INO_LOOKUP = 0xD0009412  # BTRFS_IOC_INO_LOOKUP
_SNAP_DESTROY_V2 = 0x5000943F  # BTRFS_IOC_SNAP_DESTROY_V2
_SUBVOL_SPEC_BY_ID = 1 << 4  # BTRFS_SUBVOL_SPEC_BY_ID
_INODE_REF = 12  # BTRFS_INODE_REF_KEY
_ROOT_BACKREF = 144  # BTRFS_ROOT_BACKREF_KEY
_ROOT_REF = 156  # BTRFS_ROOT_REF_KEY

_ROOT_REF_ITEM = struct.Struct("=QQH")  # btrfs_root_ref; the name follows
_INODE_REF_ITEM = struct.Struct("=QH")  # btrfs_inode_ref; the name follows
_INO_LOOKUP_ARGS = struct.Struct("=QQ4080s")
_VOL_ARGS_V2 = struct.Struct("=qQQ4Q4040s")

_LONGEST_PATH = 4096
"""Bytes of a path that is worth showing (PATH_MAX); a nested one may be of any length."""
_TRIES = 50
"""How often something is looked for anew that is moved while it is reached for. Of two directories
that are swapped without end, every second try meets the right one."""
_PATIENCE = 10.0
"""Seconds to go on for while somebody makes new ones as fast as the old ones go."""


@dataclass(frozen=True)
class Nested:
    """A subvolume inside another one."""

    tree: int
    parent: int
    """The tree that holds it: that of another nested one, or of the one that all are in."""
    directory: int
    """The inode of the directory that holds it, in the parent's tree."""
    name: bytes
    """Its name in that directory."""


class Moved(OSError):
    """Somebody moves or removes what is reached for, again and again."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "its directories are moved about; try again")


def find(root: Directory) -> list[Nested]:
    """The subvolumes nested in the one whose root this is, at any depth, each after the one that
    holds it. Costs some µs for each."""
    search = Search(root)
    found: list[Nested] = []
    unseen = [root.info().tree]
    for tree in unseen:  # which grows meanwhile
        for child, item in search.items(TREE_OF_ROOTS, tree, _ROOT_REF):
            found.append(Nested(child, tree, *_reference(item)))
            unseen.append(child)
    return found


def paths(root: Directory, found: list[Nested]) -> list[str | None]:
    """The path of each subvolume below the root; None if that is too long, or cannot be found out
    because it moves. For people to read: it leads nowhere that can be relied on."""
    place = root.info().tree
    known: dict[int, str | None] = {place: ""}
    for each in found:
        above = known.get(each.parent)
        known[each.tree] = None
        if above is not None:
            known[each.tree] = _path(root, each, above)
    return [None if (path := known[each.tree]) is None else path[:-1] for each in found]


def _path(root: Directory, nested: Nested, above: str) -> str | None:
    """The path of a nested subvolume, with a slash at its end, given its parent's path."""
    within = b""
    if nested.directory != ROOT_INODE:
        request = bytearray(_INO_LOOKUP_ARGS.pack(nested.parent, nested.directory, b""))
        try:
            fcntl.ioctl(root.descriptor, _INO_LOOKUP, request)
        except OSError:  # too long, or gone
            return None
        within = _INO_LOOKUP_ARGS.unpack(request)[2].partition(b"\0")[0]
    path = f"{above}{os.fsdecode(within + nested.name)}/"
    return path if len(os.fsencode(path)) <= _LONGEST_PATH else None


def delete_tree(path: Path) -> None:
    """Delete a subvolume and all that are nested in it, whatever happens in it meanwhile.

    Raises OSError, CommandFailed.
    """
    with opened(path) as root:
        _delete_nested(root)
        if root.is_protected():  # as a snapshot of an immutable volume is
            root.set_readonly(False)
            root.unprotect()
        try:
            command.run(["btrfs", "subvolume", "delete", str(path)])
            return
        except CommandFailed:
            if not find(root):
                raise
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            _delete_nested(root, deadline)
            try:
                _destroy(root, root.info().tree)  # at once: by a command, it would be later
                return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
    raise OSError(errno.EBUSY, "somebody goes on making subvolumes in it", str(path))


def _delete_nested(root: Directory, deadline: float = math.inf) -> None:
    """Delete all that is nested in a subvolume now, deepest first, as far as one gets until a
    moment of the monotonic clock."""
    for nested in reversed(find(root)):
        if time.monotonic() > deadline:
            return
        try:
            try:
                _delete_one(root, nested)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EPERM):
                    raise
                _let_go(root, nested)
                _delete_one(root, nested)
        except FileNotFoundError:
            continue  # somebody else has deleted it
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # else one was made in it meanwhile
                raise


def _let_go(root: Directory, nested: Nested) -> None:
    """Let a nested subvolume be deleted that lies in a read-only one, or is immutable itself or in
    an immutable directory (chattr(1))."""
    with _reached(root, nested.parent, ROOT_INODE) as parent:
        parent.set_readonly(False)
        with _reached(root, nested.parent, nested.directory) as directory:
            if directory.is_protected():
                directory.unprotect()
    with _reached(root, nested.tree, ROOT_INODE) as inner:
        if inner.is_protected():
            inner.set_readonly(False)
            inner.unprotect()


def _delete_one(root: Directory, nested: Nested) -> None:
    """Delete a nested subvolume that holds none, if it still is where it was found."""
    if nested.parent not in (parent for parent, _ in _backrefs(Search(root), nested.tree)):
        raise FileNotFoundError
    try:
        _destroy(root, nested.tree)
    except OSError as error:
        # the kernel makes a path of the number, of 4,096 bytes at most, and takes no name with ".."
        # at its beginning (btrfs_ioctl_snap_destroy in fs/btrfs/ioctl.c)
        if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL):
            raise
        with _reached(root, nested.parent, nested.directory) as directory:
            _delete_by_name(directory, nested.name)


def _destroy(root: Directory, tree: int) -> None:
    """Delete a subvolume of the same filesystem by its number."""
    number = struct.pack("=Q", tree)
    request = bytearray(_VOL_ARGS_V2.pack(0, 0, _SUBVOL_SPEC_BY_ID, 0, 0, 0, 0, number))
    fcntl.ioctl(root.descriptor, _SNAP_DESTROY_V2, request)


def _delete_by_name(directory: Directory, name: bytes) -> None:
    """Delete a subvolume of this very directory, by a name that the kernel takes."""
    plain = os.fsencode(f"doomed-{uuid.uuid4().hex}")
    os.rename(name, plain, src_dir_fd=directory.descriptor, dst_dir_fd=directory.descriptor)
    request = bytearray(_VOL_ARGS_V2.pack(0, 0, 0, 0, 0, 0, 0, plain))
    fcntl.ioctl(directory.descriptor, _SNAP_DESTROY_V2, request)


@contextmanager
def _reached(root: Directory, tree: int, inode: int) -> Iterator[Directory]:
    """Open a directory below a subvolume's root by numbers: its tree and its inode."""
    for _ in range(_TRIES):
        steps = _steps(root, tree, inode)
        descriptor = _walk(root, steps)
        if descriptor is not None:
            break
    else:
        raise Moved
    try:
        yield Directory(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Step:
    """A name in a directory, and what must be found there."""

    name: bytes
    tree: int
    inode: int


def _steps(root: Directory, tree: int, inode: int) -> list[_Step]:
    """The way from a subvolume's root to a directory at this moment. FileNotFoundError if that does
    not lie below it."""
    place, search, steps = root.info().tree, Search(root), list[_Step]()
    while (tree, inode) != (place, ROOT_INODE):
        if inode == ROOT_INODE:
            above = _backrefs(search, tree)
            if not above:
                raise FileNotFoundError
            parent, (directory, name) = above[0]
            steps.append(_Step(name, tree, inode))
            tree, inode = parent, directory
        else:
            holder = next(search.items(tree, inode, _INODE_REF), None)
            if holder is None:
                raise FileNotFoundError
            directory, item = holder
            _, length = _INODE_REF_ITEM.unpack_from(item)
            steps.append(_Step(item[_INODE_REF_ITEM.size :][:length], tree, inode))
            inode = directory
    return steps[::-1]


def _walk(root: Directory, steps: list[_Step]) -> int | None:
    """Go step by step, and return a descriptor of where that leads; None if it leads elsewhere."""
    descriptor = os.dup(root.descriptor)
    try:
        for step in steps:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            inner = os.open(step.name, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
            here = Directory(descriptor)
            is_it = here.inode() == step.inode and here.info().tree == step.tree
            if not is_it:
                raise FileNotFoundError
    except (FileNotFoundError, NotADirectoryError):
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.ELOOP:  # a link
            return None
        raise
    return descriptor


def _backrefs(search: Search, tree: int) -> list[tuple[int, tuple[int, bytes]]]:
    """Where a subvolume lies: the tree that holds it, the directory in that, and the name
    there. Empty if it is gone, or the filesystem's top."""
    return [
        (parent, _reference(item))
        for parent, item in search.items(TREE_OF_ROOTS, tree, _ROOT_BACKREF)
    ]


def _reference(item: bytes) -> tuple[int, bytes]:
    """The directory and the name in a btrfs_root_ref."""
    directory, _, length = _ROOT_REF_ITEM.unpack_from(item)
    return directory, item[_ROOT_REF_ITEM.size :][:length]
