/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/kspawn: start another kernel on CPUs and memory that this one gave up.
 *
 * Rules that hold for every structure: the size is fixed and a multiple of
 * eight, 64-bit members are aligned, so 32-bit and 64-bit programs see the
 * same layout. Reserved members and unknown flags must be zero (-EINVAL).
 *
 * Rights: opening needs CAP_SYS_BOOT and CAP_SYS_RAWIO and no lockdown.
 * KSPAWN_INFO and read-only mappings work on a descriptor opened O_RDONLY; all
 * else needs one opened for writing (-EBADF).
 *
 * Any number of descriptors may be open for writing: every call is atomic, and
 * what is undone at close belongs to one descriptor. Who may upgrade a machine
 * is for programs to settle among themselves, by a lock of their own.
 *
 * What the close of a descriptor (or the death of its owner) undoes: its guard
 * stops, its panic flag is withdrawn, devices it quiesced without
 * KSPAWN_PCI_KEEP are resumed, CPUs it started with KSPAWN_START_TIED get INIT.
 * Other started CPUs go on: the program that watches over an upgrade may be
 * killed and resumed, and a kernel in use must not die with it.
 */
#ifndef _UAPI_KSPAWN_H
#define _UAPI_KSPAWN_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define KSPAWN_ABI_VERSION	1

#define KSPAWN_NO_APIC_ID	0xffffffff

/* kspawn_info.flags */
#define KSPAWN_INFO_X2APIC	0x1	/* local APICs are in x2APIC mode */
#define KSPAWN_INFO_LA57	0x2	/* this kernel runs with 5-level paging */

/* kspawn_info.capabilities */
#define KSPAWN_CAP_START	0x1	/* the real BSP is known: START, STOP, GUARD work */
#define KSPAWN_CAP_LEAVE	0x2
#define KSPAWN_CAP_ACPI		0x4
#define KSPAWN_CAP_PCI		0x8
#define KSPAWN_CAP_PANIC_FLAG	0x10
#define KSPAWN_CAP_GUARD	0x20

/**
 * struct kspawn_info - what this module can do here
 * @abi_version: KSPAWN_ABI_VERSION
 * @flags: KSPAWN_INFO_*
 * @capabilities: KSPAWN_CAP_*
 * @trampoline: physical address of the pages below 1 MiB that START and LEAVE
 *	use; every page table given to them must map its first page to itself
 * @trampoline_size: bytes
 * @tsc_khz: frequency of the time stamp counter
 * @bsp_apic_id: the machine's bootstrap processor, which never gets INIT;
 *	KSPAWN_NO_APIC_ID while unknown
 * @boot_apic_id: CPU 0 of this kernel, which is another one in a spawned kernel
 * @nr_ioapics: I/O APICs that LEAVE masks
 * @max_apic_id: highest id that START and STOP can address
 * @nr_started: CPUs started and not stopped since
 * @reserved0: 0
 * @reserved: 0
 */
struct kspawn_info {
	__u32 abi_version;
	__u32 flags;
	__aligned_u64 capabilities;
	__aligned_u64 trampoline;
	__u32 trampoline_size;
	__u32 tsc_khz;
	__u32 bsp_apic_id;
	__u32 boot_apic_id;
	__u32 nr_ioapics;
	__u32 max_apic_id;
	__u32 nr_started;
	__u32 reserved0;
	__aligned_u64 reserved[4];
};

/*
 * The CPU was never online in this kernel, so another one may run on it; the
 * caller vouches that none does.
 */
#define KSPAWN_START_FOREIGN	0x1
/* The CPU gets INIT when this descriptor is closed. */
#define KSPAWN_START_TIED	0x2
/*
 * The entry is this kernel's own loop for CPUs that wait for it (the reset
 * vector of its MADT): the CPU does not count as started and can be brought
 * online here. Not together with KSPAWN_START_TIED.
 */
#define KSPAWN_START_OWN	0x4

/**
 * struct kspawn_start - start a CPU, for KSPAWN_START
 * @apic_id: which
 * @flags: KSPAWN_START_*
 * @rip: 64-bit entry point, a virtual address in the page table @cr3
 * @cr3: physical address of a 4-level page table; the entry point must lead
 *	to memory that is mappable here and the trampoline to itself (-EINVAL)
 * @rsi: register RSI at entry
 * @reserved: 0
 *
 * State at entry: long mode, CR0 = PG|NE|ET|MP|PE, CR4 = PAE,
 * EFER = LME|LMA|NXE, flat segments (CS 0x10, data 0x18), interrupts off, no
 * stack, no IDT.
 *
 * Errors: -ENODEV no present CPU has this id, -EBUSY it is online here,
 * -EALREADY it was started and not stopped, -EPERM it is the bootstrap
 * processor or that is unknown, -EACCES it was never online here and
 * KSPAWN_START_FOREIGN is missing, -ERANGE the id cannot be addressed in the
 * APIC's mode, -ETIMEDOUT it did not come (and got INIT).
 *
 * A started CPU cannot be brought online here, nor this module be unloaded,
 * until KSPAWN_STOP (or unless KSPAWN_START_OWN).
 */
struct kspawn_start {
	__u32 apic_id;
	__u32 flags;
	__aligned_u64 rip;
	__aligned_u64 cr3;
	__aligned_u64 rsi;
	__aligned_u64 reserved[2];
};

/**
 * struct kspawn_stop - stop a CPU by INIT, for KSPAWN_STOP
 * @apic_id: which; it need not have been started here
 * @flags: KSPAWN_START_FOREIGN or 0
 * @reserved: 0
 *
 * Errors as KSPAWN_START, but no -EALREADY: stopping twice is fine.
 */
struct kspawn_stop {
	__u32 apic_id;
	__u32 flags;
	__aligned_u64 reserved[3];
};

/* All online CPUs go to the entry, at the same time. */
#define KSPAWN_LEAVE_ALL	0x1

/**
 * struct kspawn_leave - end this kernel, for KSPAWN_LEAVE
 * @rip: as in struct kspawn_start
 * @cr3: as in struct kspawn_start
 * @rsi: as in struct kspawn_start
 * @flags: KSPAWN_LEAVE_ALL or 0
 * @reserved: 0
 *
 * The calling CPU, which must be the only one online without KSPAWN_LEAVE_ALL
 * (-EBUSY), takes the bus from the devices that this kernel still drives
 * (quiesced ones excepted), masks all I/O APICs and its own local vectors, and
 * enters @rip. Returns only by an error, and then nothing was done. Nothing is
 * synced.
 *
 * With KSPAWN_LEAVE_ALL no CPU need be taken offline before, which can wait for
 * ever where a quiesced device holds requests; and the bootstrap processor,
 * which may get no INIT, goes like all others. The entry needs no stack then.
 */
struct kspawn_leave {
	__aligned_u64 rip;
	__aligned_u64 cr3;
	__aligned_u64 rsi;
	__u32 flags;
	__u32 reserved0;
	__aligned_u64 reserved[2];
};

#define KSPAWN_ACPI_MAX		65536

/**
 * struct kspawn_acpi - load an SSDT into this kernel, for KSPAWN_ACPI
 * @table: address of the table in the caller's memory
 * @length: its length, as in its header; at most KSPAWN_ACPI_MAX
 * @flags: 0
 * @reserved: 0
 *
 * -EINVAL: not an SSDT, or length or checksum are wrong. -EIO: the interpreter
 * refused it. A loaded table stays.
 */
struct kspawn_acpi {
	__aligned_u64 table;
	__u32 length;
	__u32 flags;
	__aligned_u64 reserved[2];
};

/* The device stays quiesced when the descriptor is closed: it was handed over. */
#define KSPAWN_PCI_KEEP		0x1

/**
 * struct kspawn_pci - one PCI function, for KSPAWN_QUIESCE and KSPAWN_RESUME
 * @domain: PCI segment
 * @bus: bus number
 * @devfn: device << 3 | function
 * @reserved0: 0
 * @flags: KSPAWN_PCI_KEEP (QUIESCE only) or 0
 * @reserved1: 0
 * @reserved: 0
 *
 * The driver stays bound; mounts, addresses and open files stay. QUIESCE of a
 * quiesced device calls nothing: it passes the device to this descriptor, or
 * marks it kept. RESUME works on any descriptor.
 *
 * Errors: -ENODEV no such device, -EOPNOTSUPP its driver cannot freeze and
 * restore (or none is bound, or it needs callbacks with interrupts off),
 * -EINVAL a bridge, -EALREADY RESUME of a device that is not quiesced, or the
 * error of the driver.
 */
struct kspawn_pci {
	__u32 domain;
	__u8 bus;
	__u8 devfn;
	__u16 reserved0;
	__u32 flags;
	__u32 reserved1;
	__aligned_u64 reserved[2];
};

/**
 * struct kspawn_panic_flag - what a panic writes, for KSPAWN_PANIC_FLAG
 * @address: physical, of four bytes in mappable memory, aligned; 0 withdraws
 * @value: written by the panicking kernel
 * @flags: 0
 * @reserved: 0
 *
 * One for each descriptor; another call replaces it. With a crash kernel loaded
 * Linux calls no notifier unless booted with crash_kexec_post_notifiers.
 */
struct kspawn_panic_flag {
	__aligned_u64 address;
	__u32 value;
	__u32 flags;
	__aligned_u64 reserved[2];
};

#define KSPAWN_GUARD_MIN_US	20
#define KSPAWN_GUARD_MAX_US	1000000

/**
 * struct kspawn_guard - stop CPUs as soon as they ask for it, for KSPAWN_GUARD
 * @address: physical, of eight bytes in mappable memory, aligned
 * @mask: fires when any of these bits becomes set there
 * @apic_ids: address of an array of __u32 in the caller's memory
 * @nr_apic_ids: its length; 0 stops the guard
 * @interval_us: how often to look, KSPAWN_GUARD_MIN_US..MAX_US; 0 is 50
 * @flags: 0
 * @reserved0: 0
 * @reserved: 0
 *
 * The emulated reset register of a spawned kernel is a byte of ordinary memory.
 * A kernel that wrote it waits a few milliseconds before it tries harder, by
 * means that reset the whole machine. The guard looks from a timer interrupt
 * and sends INIT to those of @apic_ids that are started and not stopped.
 *
 * One for each descriptor (-EBUSY: one is armed; a fired one does not count).
 * Once it fired and the CPUs are stopped, poll(2) reports POLLIN and read(2)
 * returns one struct kspawn_event.
 */
struct kspawn_guard {
	__aligned_u64 address;
	__aligned_u64 mask;
	__aligned_u64 apic_ids;
	__u32 nr_apic_ids;
	__u32 interval_us;
	__u32 flags;
	__u32 reserved0;
	__aligned_u64 reserved[2];
};

/**
 * struct kspawn_event - a guard fired; read(2)
 * @time_ns: when, CLOCK_MONOTONIC
 * @address: the guard's
 * @value: what was found there
 * @nr_stopped: CPUs that got INIT
 * @reserved0: 0
 * @reserved: 0
 */
struct kspawn_event {
	__aligned_u64 time_ns;
	__aligned_u64 address;
	__aligned_u64 value;
	__u32 nr_stopped;
	__u32 reserved0;
	__aligned_u64 reserved[2];
};

/*
 * mmap(2): the offset is a physical address. Only MAP_SHARED, and only memory
 * that this kernel does not use: RAM it took offline, or ranges set aside at
 * boot, by memmap=nn$ss or by whoever wrote its memory map (types reserved and
 * persistent) and not claimed by a driver. -EPERM: in use by this kernel, or no
 * memory; -EBUSY: claimed by a driver, or going online at this moment.
 *
 * While such a range is mapped, and as long after that as any CPU is started,
 * its memory blocks cannot be brought online.
 */

#define KSPAWN_IOC		0xbc
#define KSPAWN_INFO		_IOR(KSPAWN_IOC, 0x00, struct kspawn_info)
#define KSPAWN_START		_IOW(KSPAWN_IOC, 0x01, struct kspawn_start)
#define KSPAWN_STOP		_IOW(KSPAWN_IOC, 0x02, struct kspawn_stop)
#define KSPAWN_LEAVE		_IOW(KSPAWN_IOC, 0x03, struct kspawn_leave)
#define KSPAWN_ACPI		_IOW(KSPAWN_IOC, 0x04, struct kspawn_acpi)
#define KSPAWN_QUIESCE		_IOW(KSPAWN_IOC, 0x05, struct kspawn_pci)
#define KSPAWN_RESUME		_IOW(KSPAWN_IOC, 0x06, struct kspawn_pci)
#define KSPAWN_PANIC_FLAG	_IOW(KSPAWN_IOC, 0x07, struct kspawn_panic_flag)
#define KSPAWN_GUARD		_IOW(KSPAWN_IOC, 0x08, struct kspawn_guard)

#endif /* _UAPI_KSPAWN_H */
