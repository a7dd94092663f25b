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

    #define BP_RESOLVE_NO_SYMLINKS ...
    #define BP_RESOLVE_NO_MAGICLINKS ...
    """
)

ffibuilder.set_source(
    "borg_pull.linux._kernel",
    r"""
    #include <errno.h>
    #include <linux/capability.h>
    #include <linux/openat2.h>
    #include <stdint.h>
    #include <sys/auxv.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
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

    static int bp_at_secure(void)
    {
        return getauxval(AT_SECURE) != 0;
    }
    """,
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)
