/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of kspawn know of each other. */
#ifndef _KSPAWN_INTERNAL_H
#define _KSPAWN_INTERNAL_H

#include <linux/irq_work.h>
#include <linux/linkage.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>

#include "uapi/kspawn.h"

#define KSPAWN_VERSION "0.1.0"

struct file;
struct kspawn_panic;
struct kspawn_range;
struct kspawn_watch;
struct vm_area_struct;

/*
 * Serialises everything that changes something. Order: mmap_lock or the memory
 * hotplug lock, then the lock in memory.c; kspawn_lock, then cpus_read_lock(),
 * then device_lock().
 */
extern struct mutex kspawn_lock;

/* One open descriptor. */
struct kspawn_file {
	struct kspawn_panic *panic;
	struct kspawn_watch *guard;

	/* What a guard that fired leaves for read(2). */
	wait_queue_head_t wait;
	struct irq_work wake;
	raw_spinlock_t lock;	/* the two below */
	bool fired;
	struct kspawn_event event;
};

/* cpu.c */
int kspawn_cpu_init(void);
void kspawn_cpu_exit(void);
void kspawn_cpu_info(struct kspawn_info *info);
int kspawn_cpu_check(u32 apic_id, u32 flags);
int kspawn_cpu_start(struct kspawn_file *kf, const struct kspawn_start *s);
int kspawn_cpu_stop(const struct kspawn_stop *s);
void kspawn_cpu_release(struct kspawn_file *kf);
bool kspawn_cpu_any_started(void);
bool kspawn_cpu_init_assert(unsigned int cpu);
void kspawn_cpu_init_deassert(unsigned int cpu);

/* leave.c: the trampoline in low memory, and the way out */
int kspawn_leave_init(void);
void kspawn_leave_exit(void);
void kspawn_leave_info(struct kspawn_info *info);
unsigned long kspawn_trampoline(void);
u32 *kspawn_trampoline_set(u64 rip, u64 cr3, u64 rsi);
int kspawn_leave(const struct kspawn_leave *l);

/* trampoline.S */
extern const char kspawn_blob[], kspawn_blob_end[], kspawn_blob_leave[];
extern const char kspawn_blob_gdtr[], kspawn_blob_far32[], kspawn_blob_far64[], kspawn_blob_args[];
asmlinkage void kspawn_jump(unsigned long cr3, unsigned long cr4, unsigned long page,
			    unsigned long entry);

/* memory.c: memory this kernel does not use, and keeps not using */
int kspawn_mem_init(void);
void kspawn_mem_exit(void);
struct kspawn_range *kspawn_mem_hold(u64 start, u64 size);
void kspawn_mem_drop(struct kspawn_range *range);
int kspawn_mem_entry_ok(u64 cr3, u64 rip);
int kspawn_mmap(struct file *file, struct vm_area_struct *vma);

/* pci.c */
int kspawn_pci_quiesce(struct kspawn_file *kf, const struct kspawn_pci *p);
int kspawn_pci_resume(const struct kspawn_pci *p);
void kspawn_pci_release(struct kspawn_file *kf);
void kspawn_pci_silence(void);

/* watch.c: panic flags and guards */
int kspawn_watch_init(void);
void kspawn_watch_exit(void);
void kspawn_watch_open(struct kspawn_file *kf);
int kspawn_panic_flag(struct kspawn_file *kf, const struct kspawn_panic_flag *p);
int kspawn_guard(struct kspawn_file *kf, const struct kspawn_guard *g);
bool kspawn_guard_event(struct kspawn_file *kf, struct kspawn_event *event);
bool kspawn_guard_has_event(struct kspawn_file *kf);
void kspawn_watch_release(struct kspawn_file *kf);

/* ssdt.c */
int kspawn_acpi(const struct kspawn_acpi *a);

#endif /* _KSPAWN_INTERNAL_H */
