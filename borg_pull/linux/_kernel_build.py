"""Builds ``borg_pull.linux._kernel``, the compiled door to system calls that Python lacks."""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    int bp_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable);
    int bp_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable);
    int bp_ambient_raise(int capability);
    int bp_ambient_is_set(int capability);
    int bp_openat2(int directory, const char *path, uint64_t flags, uint64_t resolve);
    int bp_landlock_abi(void);
    int bp_landlock_create(uint64_t access_fs, uint64_t access_net, uint64_t scoped);
    int bp_landlock_allow(int ruleset, uint64_t access_fs, int path_descriptor);
    int bp_landlock_restrict(int ruleset);
    int bp_at_secure(void);
    int bp_forget_signals(void);
    int bp_forbid_core_dumps(void);
    int bp_raise_descriptor_limit(uint64_t wanted);
    int bp_limit_processes(uint64_t most);
    int bp_end_children(void);
    int bp_vouches_for_owners(int descriptor);
    int bp_deny_system_calls(int unpacks);
    int bp_unshare_mounts(int with_user);
    int bp_make_mounts_private(void);
    int bp_mount_on_itself(const char *path);
    int bp_set_read_only(const char *path, int is_read_only, int with_all_below);

    #define BP_RESOLVE_NO_SYMLINKS ...
    #define BP_RESOLVE_NO_MAGICLINKS ...
    """
)

ffibuilder.set_source(
    "borg_pull.linux._kernel",
    r"""
    #define _GNU_SOURCE
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/audit.h>
    #include <linux/capability.h>
    #include <linux/filter.h>
    #include <linux/fs.h>
    #include <linux/openat2.h>
    #include <linux/seccomp.h>
    #include <linux/magic.h>
    #include <sched.h>
    #include <signal.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/auxv.h>
    #include <sys/ioctl.h>
    #include <sys/mount.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/statvfs.h>
    #include <sys/syscall.h>
    #include <sys/time.h>
    #include <sys/vfs.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>

    #define BP_RESOLVE_NO_SYMLINKS RESOLVE_NO_SYMLINKS
    #define BP_RESOLVE_NO_MAGICLINKS RESOLVE_NO_MAGICLINKS

    /* Debian 12's libc headers may predate the number; the kernel's is the same everywhere. */
    #ifndef SYS_landlock_create_ruleset
    #define SYS_landlock_create_ruleset 444
    #endif
    #ifndef SYS_landlock_add_rule
    #define SYS_landlock_add_rule 445
    #endif
    #ifndef SYS_landlock_restrict_self
    #define SYS_landlock_restrict_self 446
    #endif
    #define BP_LANDLOCK_CREATE_RULESET_VERSION 1
    #define BP_LANDLOCK_RULE_PATH_BENEATH 1

    /* include/uapi/linux/landlock.h of Linux 6.12; older headers have fewer fields. A kernel
       that knows fewer takes the larger structure as long as the rest is zero. */
    struct bp_ruleset_attributes {
        uint64_t handled_access_fs;
        uint64_t handled_access_net;
        uint64_t scoped;
    };
    struct bp_path_beneath_attributes {
        uint64_t allowed_access;
        int32_t parent_fd;
    } __attribute__((packed));

    /* capset(2) version 3 takes each 64-bit set as two 32-bit halves. */
    static int bp_capget(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable)
    {
        struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct data[2] = {{0}};
        if (syscall(SYS_capget, &header, data) != 0)
            return -errno;
        *effective = (uint64_t)data[1].effective << 32 | data[0].effective;
        *permitted = (uint64_t)data[1].permitted << 32 | data[0].permitted;
        *inheritable = (uint64_t)data[1].inheritable << 32 | data[0].inheritable;
        return 0;
    }

    static int bp_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable)
    {
        struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct data[2] = {
            {(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
            {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32),
             (uint32_t)(inheritable >> 32)},
        };
        return syscall(SYS_capset, &header, data) != 0 ? -errno : 0;
    }

    static int bp_ambient_raise(int capability)
    {
        return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, (unsigned long)capability, 0UL, 0UL)
            != 0 ? -errno : 0;
    }

    static int bp_ambient_is_set(int capability)
    {
        int result =
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, (unsigned long)capability, 0UL, 0UL);
        return result < 0 ? -errno : result;
    }

    static int bp_openat2(int directory, const char *path, uint64_t flags, uint64_t resolve)
    {
        struct open_how how = {.flags = flags, .mode = 0, .resolve = resolve};
        long descriptor = syscall(SYS_openat2, directory, path, &how, sizeof how);
        return descriptor < 0 ? -errno : (int)descriptor;
    }

    static int bp_landlock_abi(void)
    {
        long version = syscall(SYS_landlock_create_ruleset, NULL, 0UL,
                               BP_LANDLOCK_CREATE_RULESET_VERSION);
        return version < 0 ? -errno : (int)version;
    }

    static int bp_landlock_create(uint64_t access_fs, uint64_t access_net, uint64_t scoped)
    {
        struct bp_ruleset_attributes attributes = {access_fs, access_net, scoped};
        long ruleset =
            syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0U);
        return ruleset < 0 ? -errno : (int)ruleset;
    }

    static int bp_landlock_allow(int ruleset, uint64_t access_fs, int path_descriptor)
    {
        struct bp_path_beneath_attributes attributes = {access_fs, path_descriptor};
        return syscall(SYS_landlock_add_rule, ruleset, BP_LANDLOCK_RULE_PATH_BENEATH,
                       &attributes, 0U) != 0 ? -errno : 0;
    }

    static int bp_landlock_restrict(int ruleset)
    {
        return syscall(SYS_landlock_restrict_self, ruleset, 0U) != 0 ? -errno : 0;
    }

    #if defined(__x86_64__)
    #define BP_ARCHITECTURE AUDIT_ARCH_X86_64
    #define BP_HIGHEST_CALL 0x3fffffff /* above are the calls of the x32 ABI */
    #elif defined(__aarch64__)
    #define BP_ARCHITECTURE AUDIT_ARCH_AARCH64
    #define BP_HIGHEST_CALL 0xffffffff
    #else
    #error "name this architecture's AUDIT_ARCH constant"
    #endif

    #ifndef SYS_fchmodat2
    #define SYS_fchmodat2 452
    #endif
    #ifndef SYS_file_setattr
    #define SYS_file_setattr 469
    #endif
    #ifndef SYS_quotactl_fd
    #define SYS_quotactl_fd 443
    #endif
    #ifndef SYS_setxattrat
    #define SYS_setxattrat 463
    #define SYS_removexattrat 466
    #endif

    #define BP_COUNT(array) (sizeof (array) / sizeof (array)[0])
    #define BP_LOAD(field) \
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
    /* Both architectures are little-endian: the low half of an argument comes first. */
    #define BP_ERROR(number) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (number))
    #define BP_ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
    #define BP_KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
    #define BP_IF(value, then, otherwise) \
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, then, otherwise)
    #define BP_DENY(call, number) BP_IF(SYS_##call, 0, 1), BP_ERROR(number)
    /* Landlock takes an open by its access mode, and before level 3 it overlooks O_TRUNC in one
       that does not write: without an access (mode 3) of any file at all. */
    #define BP_NO_TRUNCATING_READ(call, argument) \
        BP_IF(SYS_##call, 0, 6), BP_LOAD(args[argument]), \
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, O_TRUNC | O_ACCMODE), \
        BP_IF(O_TRUNC, 2, 0), BP_IF(O_TRUNC | O_ACCMODE, 1, 0), BP_ALLOW, BP_ERROR(EPERM)
    #define BP_ONLY(call, argument, value, number) \
        BP_IF(SYS_##call, 0, 4), BP_LOAD(args[argument]), BP_IF(value, 0, 1), BP_ALLOW, \
        BP_ERROR(number)

    /* What borg and a socket wrapper have no use for and Landlock does not cover: reaching files
       by handle, other processes of the account by number, sockets other than Unix ones, changing
       modes, owners and attributes of whatever the account owns, locks on files others need,
       being told of files made elsewhere. And what older Landlocks do not: to truncate files by
       path (before Linux 6.2), to signal other processes (before 6.12). */
    static int bp_deny_system_calls(int unpacks)
    {
        static const struct sock_filter known[] = {
            BP_LOAD(arch),
            BP_IF(BP_ARCHITECTURE, 1, 0),
            BP_KILL,
            BP_LOAD(nr),
            BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, BP_HIGHEST_CALL, 0, 1),
            BP_KILL,
        };
        /* Of what it could open, and so has been given by Landlock, it may set mode and times:
           by descriptor, one of O_PATH being none for these. No bit that lends an identity. */
        static const struct sock_filter unpacking[] = {
            BP_IF(SYS_fchmod, 0, 4), BP_LOAD(args[1]),
            BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, S_ISUID | S_ISGID | S_ISVTX, 1, 0),
            BP_ALLOW, BP_ERROR(0),
            BP_IF(SYS_utimensat, 0, 6), BP_LOAD(args[1]), BP_IF(0, 0, 3),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1]) + 4),
            BP_IF(0, 0, 1), BP_ALLOW, BP_ERROR(EPERM),
        };
        static const struct sock_filter denied[] = {
            BP_DENY(open_by_handle_at, EPERM), BP_DENY(name_to_handle_at, EPERM),
            BP_DENY(ptrace, EPERM), BP_DENY(process_vm_readv, EPERM),
            BP_DENY(process_vm_writev, EPERM), BP_DENY(kcmp, EPERM),
            BP_DENY(pidfd_open, EPERM), BP_DENY(pidfd_getfd, EPERM),
            BP_DENY(pidfd_send_signal, EPERM), BP_DENY(process_madvise, EPERM),
            BP_DENY(perf_event_open, EPERM), BP_DENY(bpf, EPERM), BP_DENY(userfaultfd, EPERM),
            BP_DENY(io_uring_setup, EPERM), BP_DENY(io_uring_enter, EPERM),
            BP_DENY(io_uring_register, EPERM),
            BP_DENY(add_key, EPERM), BP_DENY(request_key, EPERM), BP_DENY(keyctl, EPERM),
            BP_DENY(mount, EPERM), BP_DENY(umount2, EPERM), BP_DENY(pivot_root, EPERM),
            BP_DENY(chroot, EPERM), BP_DENY(move_mount, EPERM), BP_DENY(open_tree, EPERM),
            BP_DENY(fsopen, EPERM), BP_DENY(fspick, EPERM), BP_DENY(mount_setattr, EPERM),
            BP_DENY(unshare, EPERM), BP_DENY(setns, EPERM),
            BP_DENY(shmget, EPERM), BP_DENY(shmat, EPERM), BP_DENY(semget, EPERM),
            BP_DENY(msgget, EPERM), BP_DENY(mq_open, EPERM), BP_DENY(flock, EPERM),
            BP_DENY(setpriority, EPERM), BP_DENY(ioprio_set, EPERM), BP_DENY(syslog, EPERM),
            BP_DENY(fanotify_init, EPERM), BP_DENY(inotify_init1, EPERM),
            BP_DENY(quotactl, EPERM), BP_DENY(quotactl_fd, EPERM), BP_DENY(utimensat, EPERM),
            BP_DENY(file_setattr, EPERM), BP_DENY(truncate, EPERM),
            BP_NO_TRUNCATING_READ(openat, 2),
    #ifdef SYS_open
            BP_NO_TRUNCATING_READ(open, 1),
    #endif
            /* Its flags are out of sight; whoever uses it knows kernels that lack it. */
            BP_DENY(openat2, ENOSYS),
    #ifdef SYS_inotify_init
            BP_DENY(inotify_init, EPERM),
    #endif
    #ifdef SYS_utime
            BP_DENY(utime, EPERM), BP_DENY(utimes, EPERM), BP_DENY(futimesat, EPERM),
    #endif
            /* glibc then uses clone, whose flags can be looked at. */
            BP_DENY(clone3, ENOSYS),
            /* Done in appearance: borg sets the modes of its own new files, which are 0600. */
            BP_DENY(fchmod, 0), BP_DENY(fchmodat, 0), BP_DENY(fchmodat2, 0),
            BP_DENY(fchown, 0), BP_DENY(fchownat, 0),
            BP_DENY(setxattr, 0), BP_DENY(lsetxattr, 0), BP_DENY(fsetxattr, 0),
            BP_DENY(setxattrat, 0), BP_DENY(removexattr, 0), BP_DENY(lremovexattr, 0),
            BP_DENY(fremovexattr, 0), BP_DENY(removexattrat, 0),
    #ifdef SYS_chmod
            BP_DENY(chmod, 0), BP_DENY(chown, 0), BP_DENY(lchown, 0),
    #endif
            BP_ONLY(socket, 0, AF_UNIX, EACCES),
            BP_ONLY(prlimit64, 0, 0, EPERM),
            BP_ONLY(sched_setaffinity, 0, 0, EPERM), BP_ONLY(sched_setscheduler, 0, 0, EPERM),
            BP_ONLY(sched_setparam, 0, 0, EPERM), BP_ONLY(sched_setattr, 0, 0, EPERM),
            /* Signal 0 asks whether a process lives, as borg does of the holders of its locks. */
            BP_ONLY(kill, 1, 0, EPERM), BP_ONLY(tkill, 1, 0, EPERM),
            BP_ONLY(rt_sigqueueinfo, 1, 0, EPERM), BP_ONLY(rt_tgsigqueueinfo, 2, 0, EPERM),
            /* SIGURG ends no process, and programs in Go send it to their own threads. */
            BP_IF(SYS_tgkill, 0, 5),
            BP_LOAD(args[2]),
            BP_IF(0, 1, 0), BP_IF(SIGURG, 0, 1),
            BP_ALLOW,
            BP_ERROR(EPERM),
            BP_IF(SYS_ioctl, 0, 7),
            BP_LOAD(args[1]),
            BP_IF(FIOSETOWN, 4, 0), BP_IF(SIOCSPGRP, 3, 0),
            BP_IF((uint32_t)FS_IOC_SETFLAGS, 2, 0), BP_IF((uint32_t)FS_IOC_FSSETXATTR, 1, 0),
            BP_ALLOW,
            BP_ERROR(EPERM),
            BP_IF(SYS_clone, 0, 4),
            BP_LOAD(args[0]),
            BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K,
                     CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |
                     CLONE_NEWPID | CLONE_NEWNET, 0, 1),
            BP_ERROR(EPERM),
            BP_ALLOW,
            BP_IF(SYS_fcntl, 0, 12),
            BP_LOAD(args[1]),
            BP_IF(F_SETLEASE, 9, 0), BP_IF(F_SETLK, 8, 0), BP_IF(F_SETLKW, 7, 0),
            BP_IF(F_OFD_SETLK, 6, 0), BP_IF(F_OFD_SETLKW, 5, 0), BP_IF(F_NOTIFY, 4, 0),
            BP_IF(F_SETOWN, 3, 0), BP_IF(F_SETOWN_EX, 2, 0), BP_IF(F_SETSIG, 1, 0),
            BP_ALLOW,
            BP_ERROR(EPERM),
            BP_ALLOW,
        };
        struct sock_filter filter[BP_COUNT(known) + BP_COUNT(unpacking) + BP_COUNT(denied)];
        unsigned short count = 0;
        memcpy(filter, known, sizeof known);
        count += BP_COUNT(known);
        if (unpacks) {
            memcpy(filter + count, unpacking, sizeof unpacking);
            count += BP_COUNT(unpacking);
        }
        memcpy(filter + count, denied, sizeof denied);
        count += BP_COUNT(denied);
        const struct sock_fprog program = {count, filter};
        /* Speculation is left as it is: before Linux 5.16 a filter slowed the whole process. */
        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                       &program) != 0 ? -errno : 0;
    }

    static int bp_at_secure(void)
    {
        return getauxval(AT_SECURE) != 0;
    }

    /* What exec keeps of a caller's choosing. SIGPIPE and SIGXFSZ stay as the interpreter set
       them: ignored, so that the write itself fails. The last of it is the mask, because a timer
       may have run out behind it. */
    static int bp_forget_signals(void)
    {
        static const int timers[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
        static const struct itimerval stopped;
        for (size_t i = 0; i < sizeof timers / sizeof timers[0]; i++)
            if (setitimer(timers[i], &stopped, NULL) != 0)
                return -errno;
        /* The kernel's call: the C library's would leave its own two signals, 32 and 33, as they
           were. The handler comes first in the kernel's structure, and all zeros is the default. */
        for (int number = 1; number <= 64; number++) {
            uint64_t inherited[4] = {0};
            static const uint64_t default_action[4];
            if (number == SIGPIPE || number == SIGXFSZ)
                continue;
            if (syscall(SYS_rt_sigaction, number, NULL, inherited, sizeof(uint64_t)) != 0)
                return -errno;
            if (inherited[0] != (uintptr_t)SIG_IGN || number == SIGKILL || number == SIGSTOP)
                continue;
            if (syscall(SYS_rt_sigaction, number, default_action, NULL, sizeof(uint64_t)) != 0)
                return -errno;
        }
        sigset_t none;
        sigemptyset(&none);
        return sigprocmask(SIG_SETMASK, &none, NULL) != 0 ? -errno : 0;
    }

    /* A limit of 0 holds for files only. Where core_pattern names a program, the kernel gives it
       the dump whatever the limit, unless that is 1 (fs/coredump.c), and no file is that small. */
    static int bp_forbid_core_dumps(void)
    {
        struct rlimit limit;
        if (getrlimit(RLIMIT_CORE, &limit) != 0)
            return -errno;
        if (limit.rlim_max > 1)
            limit.rlim_max = 1;
        limit.rlim_cur = limit.rlim_max;
        return setrlimit(RLIMIT_CORE, &limit) != 0 ? -errno : 0;
    }

    static int bp_raise_descriptor_limit(uint64_t wanted)
    {
        struct rlimit limit;
        if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
            return -errno;
        if (limit.rlim_cur >= wanted || limit.rlim_cur == limit.rlim_max)
            return 0;
        limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
        return setrlimit(RLIMIT_NOFILE, &limit) != 0 ? -errno : 0;
    }

    static int bp_limit_processes(uint64_t most)
    {
        struct rlimit limit;
        if (getrlimit(RLIMIT_NPROC, &limit) != 0)
            return -errno;
        if (limit.rlim_max > most)
            limit.rlim_max = most;
        if (limit.rlim_cur > limit.rlim_max)
            limit.rlim_cur = limit.rlim_max;
        return setrlimit(RLIMIT_NPROC, &limit) != 0 ? -errno : 0;
    }

    /* Whether a child of ours lives; the dead are left to be reaped, so that no other has the
       number. Asked of the kernel and not of /proc, which may hide the child and takes a
       descriptor. */
    static int bp_lives(pid_t pid)
    {
        siginfo_t dead = {0};
        return waitid(P_PID, (id_t)pid, &dead, WEXITED | WNOHANG | WNOWAIT) == 0
            && dead.si_pid == 0;
    }

    struct bp_children { int living, dead; };

    static void bp_kill_child(pid_t pid, struct bp_children *found)
    {
        if (!bp_lives(pid)) {
            found->dead++;
            return;
        }
        kill(pid, SIGKILL);
        found->living++;
    }

    /* Kills each child that /proc names and that lives, and counts; it may miss some that come
       meanwhile (proc_pid_children(5)). */
    static int bp_kill_children(int children, struct bp_children *found)
    {
        char block[4096];
        ssize_t size;
        pid_t pid = 0;
        found->living = found->dead = 0;
        if (lseek(children, 0, SEEK_SET) != 0)
            return -errno;
        while ((size = read(children, block, sizeof block)) > 0) {
            for (ssize_t i = 0; i < size; i++) {
                if (block[i] >= '0' && block[i] <= '9') {
                    pid = pid * 10 + (block[i] - '0');
                } else if (pid > 0) {
                    bp_kill_child(pid, found);
                    pid = 0;
                }
            }
        }
        if (size < 0)
            return -errno;
        if (pid > 0)
            bp_kill_child(pid, found);
        return 0;
    }

    /* Descendants that fork and end, again and again, are quicker than whoever kills them one by
       one. But each leaves a dead process behind, which counts until it is reaped: none is before
       all are dead, so at RLIMIT_NPROC the living cannot fork any more. */
    static int bp_end_children(void)
    {
        static const struct timespec moment = {.tv_nsec = 1000 * 1000};
        struct bp_children found;
        int result, is_over = 0;
        int children = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
        if (children < 0)
            return -errno;
        while ((result = bp_kill_children(children, &found)) == 0 && !is_over) {
            if (found.living > 0)
                nanosleep(&moment, NULL);
            /* And no more than those: who is left may be leaving dead ones all the time. */
            else
                for (int reaped = 0; reaped <= found.dead && !is_over; reaped++) {
                    pid_t pid = waitpid(-1, NULL, WNOHANG);
                    if (pid == 0)
                        break;
                    is_over = pid < 0;
                }
        }
        close(children);
        return result;
    }

    static int bp_vouches_for_owners(int descriptor)
    {
        struct statfs found;
        if (fstatfs(descriptor, &found) != 0)
            return -errno;
        return found.f_type != PROC_SUPER_MAGIC && !(found.f_flags & ST_NOSUID);
    }

    static int bp_unshare_mounts(int with_user)
    {
        return unshare(CLONE_NEWNS | (with_user ? CLONE_NEWUSER : 0)) != 0 ? -errno : 0;
    }

    /* Nobody else sees a change of them, nor this process any of others. */
    static int bp_make_mounts_private(void)
    {
        return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ? -errno : 0;
    }

    static int bp_mount_on_itself(const char *path)
    {
        return mount(path, path, NULL, MS_BIND | MS_REC, NULL) != 0 ? -errno : 0;
    }

    /* include/uapi/linux/mount.h of Linux 5.12; the C library's own may lack it. */
    #ifndef SYS_mount_setattr
    #define SYS_mount_setattr 442
    #endif
    struct bp_mount_attributes {
        uint64_t attr_set;
        uint64_t attr_clr;
        uint64_t propagation;
        uint64_t userns_fd;
    };
    #define BP_MOUNT_READ_ONLY 1
    #define BP_RECURSIVE 0x8000

    static int bp_set_read_only(const char *path, int is_read_only, int with_all_below)
    {
        struct bp_mount_attributes attributes = {0};
        if (is_read_only)
            attributes.attr_set = BP_MOUNT_READ_ONLY;
        else
            attributes.attr_clr = BP_MOUNT_READ_ONLY;
        return syscall(SYS_mount_setattr, AT_FDCWD, path, with_all_below ? BP_RECURSIVE : 0,
                       &attributes, sizeof attributes) != 0 ? -errno : 0;
    }
    """,
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)
