/* Contract: fs/mount_ops.h. */
#include "fs/mount_ops.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <syslog.h>
#include <unistd.h>

#include "fs/mount_log.h"

enum { STAT_BLOCK = 4096 };
static const double FOR_EVER = 1e9; /* seconds */

static struct hfs_mount *mount_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

/* The inode of a request. False, and the request is answered, if there is none. */
static bool find(fuse_req_t req, fuse_ino_t ino, struct hfs_inode *out)
{
    struct hfs_mount *m = mount_of(req);
    if (ino < 1 || ino > m->info.inodes) {
        fuse_reply_err(req, ESTALE);
        return false;
    }
    hfs_image_inode(m->img, (uint32_t)(ino - 1), out);
    return true;
}

/* The same for an inode that has to be a directory. */
static bool find_directory(fuse_req_t req, fuse_ino_t ino, struct hfs_inode *out)
{
    if (!find(req, ino, out))
        return false;
    if (S_ISDIR(out->mode))
        return true;
    fuse_reply_err(req, ENOTDIR);
    return false;
}

static void fill_stat(const struct hfs_inode *ino, struct stat *st)
{
    *st = (struct stat){
        .st_ino = (ino_t)ino->number + 1,
        .st_mode = ino->mode,
        .st_nlink = ino->nlink,
        .st_uid = ino->uid,
        .st_gid = ino->gid,
        .st_size = (off_t)ino->size,
        .st_blksize = STAT_BLOCK,
        .st_blocks = (blkcnt_t)(ino->size / 512 + (ino->size % 512 != 0)),
        .st_mtim = {.tv_sec = ino->mtime, .tv_nsec = (long)ino->mtime_nsec},
    };
    st->st_atim = st->st_ctim = st->st_mtim;
}

static void fill_entry(const struct hfs_inode *ino, struct fuse_entry_param *e)
{
    *e = (struct fuse_entry_param){
        .ino = (fuse_ino_t)ino->number + 1,
        .generation = 1,
        .attr_timeout = FOR_EVER,
        .entry_timeout = FOR_EVER,
    };
    fill_stat(ino, &e->attr);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    struct hfs_mount *m = userdata;
    /* Contents never change: the kernel need not ask, nor drop pages that it has. */
    if (conn->capable & FUSE_CAP_EXPLICIT_INVAL_DATA) {
        conn->want |= FUSE_CAP_EXPLICIT_INVAL_DATA;
        conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    }
    conn->want |= conn->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_CACHE_SYMLINKS |
                                   FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS_AUTO);
    /* Not to lower what an administrator, or udev, has allowed: the kernel takes the smaller. */
    conn->max_readahead = 64u << 20;
    conn->max_read = m->max_read; /* libfuse wants it here and among the mount options */
    m->started = true;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct hfs_mount *m = mount_of(req);
    struct fuse_entry_param e = {.entry_timeout = FOR_EVER}; /* inode 0: no such name */
    struct hfs_inode dir, ino;
    struct hfs_dirent entry;
    if (!find_directory(req, parent, &dir))
        return;
    if (hfs_image_lookup(m->img, &dir, name, strlen(name), &entry) == 0) {
        hfs_image_inode(m->img, entry.inode, &ino);
        fill_entry(&ino, &e);
    }
    fuse_reply_entry(req, &e);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    (void)ino, (void)nlookup;
    fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    (void)count, (void)forgets;
    fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t number, struct fuse_file_info *fi)
{
    (void)fi;
    struct hfs_inode ino;
    struct stat st;
    if (!find(req, number, &ino))
        return;
    fill_stat(&ino, &st);
    fuse_reply_attr(req, &st, FOR_EVER);
}

static void op_access(fuse_req_t req, fuse_ino_t number, int mask)
{
    struct hfs_inode ino;
    if (!find(req, number, &ino))
        return;
    if (mask & W_OK)
        fuse_reply_err(req, EROFS);
    else if (mask & X_OK && S_ISREG(ino.mode) && !(ino.mode & 0111))
        fuse_reply_err(req, EACCES);
    else
        fuse_reply_err(req, 0);
}

static void op_readlink(fuse_req_t req, fuse_ino_t number)
{
    struct hfs_inode ino;
    if (!find(req, number, &ino))
        return;
    if (!S_ISLNK(ino.mode)) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    char *target = strndup(hfs_image_target(mount_of(req)->img, &ino), (size_t)ino.size);
    if (target)
        fuse_reply_readlink(req, target);
    else
        fuse_reply_err(req, ENOMEM);
    free(target);
}

static void op_opendir(fuse_req_t req, fuse_ino_t number, struct fuse_file_info *fi)
{
    struct hfs_inode dir;
    if (!find_directory(req, number, &dir))
        return;
    fi->keep_cache = 1;
    fi->cache_readdir = 1;
    fuse_reply_open(req, fi);
}

/* Entry `at` of a listing: 0 and 1 are "." and "..". */
static void listed(struct hfs_mount *m, const struct hfs_inode *dir, uint64_t at,
                   struct hfs_inode *ino, char name[256])
{
    struct hfs_dirent entry = {.name = "..", .name_len = at == 0 ? 1 : 2};
    if (at < 2)
        entry.inode = at == 0 ? dir->number : dir->parent;
    else
        hfs_image_dirent(m->img, dir->first + at - 2, &entry);
    memcpy(name, entry.name, entry.name_len);
    name[entry.name_len] = '\0';
    hfs_image_inode(m->img, entry.inode, ino);
}

static void list(fuse_req_t req, fuse_ino_t number, size_t size, off_t offset, bool plus)
{
    struct hfs_mount *m = mount_of(req);
    struct hfs_inode dir;
    if (!find_directory(req, number, &dir))
        return;
    char *buf = malloc(size);
    if (!buf) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    size_t used = 0;
    uint64_t end = (uint64_t)dir.count + 2;
    for (uint64_t at = offset < 0 ? end : (uint64_t)offset; at < end; at++) {
        struct fuse_entry_param e;
        struct hfs_inode ino;
        char name[256];
        size_t room = size - used, need;
        listed(m, &dir, at, &ino, name);
        fill_entry(&ino, &e);
        if (at < 2)
            e.ino = 0; /* no look-up to be forgotten */
        if (plus)
            need = fuse_add_direntry_plus(req, buf + used, room, name, &e, (off_t)(at + 1));
        else
            need = fuse_add_direntry(req, buf + used, room, name, &e.attr, (off_t)(at + 1));
        if (need > room)
            break;
        used += need;
    }
    fuse_reply_buf(req, buf, used);
    free(buf);
}

static void op_readdir(fuse_req_t req, fuse_ino_t number, size_t size, off_t offset,
                       struct fuse_file_info *fi)
{
    (void)fi;
    list(req, number, size, offset, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t number, size_t size, off_t offset,
                           struct fuse_file_info *fi)
{
    (void)fi;
    list(req, number, size, offset, true);
}

static void op_open(fuse_req_t req, fuse_ino_t number, struct fuse_file_info *fi)
{
    struct hfs_inode ino;
    if (!find(req, number, &ino))
        return;
    if ((fi->flags & O_ACCMODE) != O_RDONLY || fi->flags & (O_TRUNC | O_CREAT)) {
        fuse_reply_err(req, EROFS);
        return;
    }
    fi->keep_cache = 1;
    fi->noflush = 1; /* nothing to write back: close needs no request */
    fuse_reply_open(req, fi);
}

/* One line in the log for a block that cannot be read. */
static void report(struct hfs_mount *m, const struct hfs_inode *ino,
                   const struct hfs_cache_key *key, int error)
{
    uint64_t hidden;
    if (!mount_log_allows(key->segment, key->index, &hidden))
        return;
    char name[512] = "?", more[64] = "";
    struct hfs_segment seg;
    char *path = hfs_image_path_of(m->img, ino->number);
    if (path)
        hfs_printable(name, sizeof name, path, (unsigned)strlen(path));
    free(path);
    hfs_image_segment(m->img, key->segment, &seg);
    uint64_t block = hc_code_block_bytes(hfs_image_code(m->img, seg.code));
    uint64_t from = key->index * block, left = seg.length - from;
    if (hidden > 0)
        snprintf(more, sizeof more, " (%llu earlier reports left out)", (unsigned long long)hidden);
    mount_log(LOG_ERR, "%s: %s: block %llu (bytes %llu to %llu) cannot be read: %s%s",
              hfs_image_path(m->img), name, (unsigned long long)(seg.first_block + key->index),
              (unsigned long long)(seg.file_offset + from),
              (unsigned long long)(seg.file_offset + from + (left < block ? left : block) - 1),
              error == -EBADMSG ? "the image is damaged there; fsck.hyperfs shows how far"
                                : strerror(-error),
              more);
}

static void op_read(fuse_req_t req, fuse_ino_t number, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    (void)fi;
    struct hfs_mount *m = mount_of(req);
    struct hfs_inode ino;
    struct hfs_read read;
    if (!find(req, number, &ino))
        return;
    if (!S_ISREG(ino.mode) || offset < 0) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    if (m->ahead)
        hfs_ahead_note(m->ahead, &ino, (uint64_t)offset, size);
    int error = hfs_reader_read(m->reader, &ino, (uint64_t)offset, size, &read);
    if (error < 0) {
        if (read.failed.segment != UINT64_MAX)
            report(m, &ino, &read.failed, error);
        fuse_reply_err(req, error == -ENOMEM ? ENOMEM : EIO);
        return;
    }
    fuse_reply_iov(req, read.iov, read.count);
    hfs_reader_done(m->reader, &read);
}

static void op_statfs(fuse_req_t req, fuse_ino_t number)
{
    (void)number;
    const struct hfs_info *info = &mount_of(req)->info;
    uint64_t rest = info->content_bytes % STAT_BLOCK;
    struct statvfs st = {
        .f_bsize = STAT_BLOCK,
        .f_frsize = STAT_BLOCK,
        .f_blocks = info->content_bytes / STAT_BLOCK + (rest != 0),
        .f_files = info->inodes,
        .f_flag = ST_RDONLY,
        .f_namemax = 255,
    };
    fuse_reply_statfs(req, &st);
}

static void reply_attribute(fuse_req_t req, const char *data, size_t len, size_t room)
{
    if (room == 0)
        fuse_reply_xattr(req, len);
    else if (room < len)
        fuse_reply_err(req, ERANGE);
    else
        fuse_reply_buf(req, data, len);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t number, const char *name, size_t size)
{
    struct hfs_mount *m = mount_of(req);
    struct hfs_inode ino;
    char value[HFS_XATTR_VALUE];
    if (!find(req, number, &ino))
        return;
    int error = hfs_xattrs_get(m->xattrs, ino.number, name, value);
    if (error == 0)
        reply_attribute(req, value, strlen(value), size);
    else
        fuse_reply_err(req, error == -ENODATA || error == -ENOMEM ? -error : EIO);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t number, size_t size)
{
    struct hfs_inode ino;
    size_t len;
    if (!find(req, number, &ino))
        return;
    const char *names = hfs_xattrs_list(&ino, &len);
    reply_attribute(req, names, len, size);
}

/* Zero segments are holes. */
static void op_lseek(fuse_req_t req, fuse_ino_t number, off_t offset, int whence,
                     struct fuse_file_info *fi)
{
    (void)fi;
    struct hfs_mount *m = mount_of(req);
    struct hfs_inode ino;
    if (!find(req, number, &ino))
        return;
    if ((whence != SEEK_DATA && whence != SEEK_HOLE) || !S_ISREG(ino.mode)) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    uint64_t at = (uint64_t)offset;
    if (offset < 0 || at >= ino.size) {
        fuse_reply_err(req, ENXIO);
        return;
    }
    for (uint64_t n = hfs_image_find_segment(m->img, &ino, at); at < ino.size; n++) {
        struct hfs_segment seg;
        hfs_image_segment(m->img, n, &seg);
        if ((seg.kind == HFS_SEG_ZERO) == (whence == SEEK_HOLE))
            break;
        at = seg.file_offset + seg.length;
    }
    if (at == ino.size && whence == SEEK_DATA)
        fuse_reply_err(req, ENXIO);
    else
        fuse_reply_lseek(req, (off_t)at);
}

/* ---- what would write ---- */

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                       struct fuse_file_info *fi)
{
    (void)ino, (void)attr, (void)to_set, (void)fi;
    fuse_reply_err(req, EROFS);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
    (void)parent, (void)name, (void)mode, (void)rdev;
    fuse_reply_err(req, EROFS);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    (void)parent, (void)name, (void)mode;
    fuse_reply_err(req, EROFS);
}

static void op_remove(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent, (void)name;
    fuse_reply_err(req, EROFS);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    (void)target, (void)parent, (void)name;
    fuse_reply_err(req, EROFS);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
                      const char *newname, unsigned flags)
{
    (void)parent, (void)name, (void)newparent, (void)newname, (void)flags;
    fuse_reply_err(req, EROFS);
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
    (void)ino, (void)newparent, (void)newname;
    fuse_reply_err(req, EROFS);
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t offset,
                     struct fuse_file_info *fi)
{
    (void)ino, (void)buf, (void)size, (void)offset, (void)fi;
    fuse_reply_err(req, EROFS);
}

static void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
                        size_t size, int flags)
{
    (void)ino, (void)name, (void)value, (void)size, (void)flags;
    fuse_reply_err(req, EROFS);
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    (void)ino, (void)name;
    fuse_reply_err(req, EROFS);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *fi)
{
    (void)parent, (void)name, (void)mode, (void)fi;
    fuse_reply_err(req, EROFS);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                         struct fuse_file_info *fi)
{
    (void)ino, (void)mode, (void)offset, (void)length, (void)fi;
    fuse_reply_err(req, EROFS);
}

const struct fuse_lowlevel_ops hfs_mount_ops = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .access = op_access,
    .readlink = op_readlink,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .open = op_open,
    .read = op_read,
    .statfs = op_statfs,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .lseek = op_lseek,
    .setattr = op_setattr,
    .mknod = op_mknod,
    .mkdir = op_mkdir,
    .unlink = op_remove,
    .rmdir = op_remove,
    .symlink = op_symlink,
    .rename = op_rename,
    .link = op_link,
    .write = op_write,
    .setxattr = op_setxattr,
    .removexattr = op_removexattr,
    .create = op_create,
    .fallocate = op_fallocate,
};
