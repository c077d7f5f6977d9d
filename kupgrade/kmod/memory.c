// SPDX-License-Identifier: GPL-2.0
/* Memory that this kernel does not use: which that is, and that it stays so. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/list.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pfn.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <asm/e820/api.h>
#include <asm/processor.h>

#include "internal.h"

/*
 * Pages that are mapped, by a program or by us. An entry without users stays
 * while any CPU is started: a kernel may run in memory that the program which
 * put it there has unmapped (or was killed).
 */
struct kspawn_range {
	struct list_head list;
	unsigned long pfn, nr;
	unsigned int users;
};

static LIST_HEAD(ranges);
/* The pages being brought online at this moment; the core does one at a time. */
static unsigned long going_pfn, going_nr;
static DEFINE_MUTEX(ranges_lock);

static bool overlap(unsigned long pfn, unsigned long nr, unsigned long other, unsigned long count)
{
	return pfn < other + count && other < pfn + nr;
}

/* Forget entries without users, if they need not be kept. */
static void reap(void)
{
	struct kspawn_range *range, *next;

	if (kspawn_cpu_any_started())
		return;
	list_for_each_entry_safe(range, next, &ranges, list) {
		if (range->users)
			continue;
		list_del(&range->list);
		kfree(range);
	}
}

static int kspawn_memory_notify(struct notifier_block *nb, unsigned long action, void *data)
{
	struct memory_notify *change = data;
	struct kspawn_range *range;
	int ret = NOTIFY_OK;

	mutex_lock(&ranges_lock);
	switch (action) {
	case MEM_GOING_ONLINE:
		reap();
		list_for_each_entry(range, &ranges, list)
			if (overlap(range->pfn, range->nr, change->start_pfn, change->nr_pages))
				ret = notifier_from_errno(-EBUSY);
		if (ret == NOTIFY_OK) {
			going_pfn = change->start_pfn;
			going_nr = change->nr_pages;
		}
		break;
	case MEM_ONLINE:
	case MEM_CANCEL_ONLINE:
		going_nr = 0;
		break;
	}
	mutex_unlock(&ranges_lock);
	return ret;
}

static struct notifier_block kspawn_memory_nb = { .notifier_call = kspawn_memory_notify };

/* RAM by the resource tree, hot-added RAM too: every part of it must be offline. */
static int check_ram(unsigned long pfn, unsigned long nr)
{
	unsigned long at;

	/* Online and offline change at subsections at the finest. */
	for (at = pfn; at < pfn + nr; at = ALIGN(at + 1, PAGES_PER_SUBSECTION))
		if (pfn_to_online_page(at))
			return -EPERM;
	return 0;
}

/*
 * No RAM of this kernel. Set aside with memmap=nn$ss, or by the kernel that made
 * this one's memory map: then the map says reserved or persistent. Firmware uses
 * "reserved" for MMIO as well; what a driver or the PCI core has claimed is
 * refused, the rest can at worst be mapped in vain, for the MTRRs that firmware
 * set keep device memory uncached whatever a page table says.
 *
 * Everything else (device windows, holes) has no use here and is refused. So is
 * all memory below 1 MiB: what of it is RAM is marked reserved, but in use.
 */
static int check_set_aside(unsigned long pfn, unsigned long nr)
{
	unsigned long at;

	for (at = pfn; at < pfn + nr; at++) {
		u64 start = PFN_PHYS(at), end = start + PAGE_SIZE;

		if (!e820__mapped_any(start, end, E820_TYPE_RESERVED) &&
		    !e820__mapped_any(start, end, E820_TYPE_PRAM) &&
		    !e820__mapped_any(start, end, E820_TYPE_PMEM))
			return -EPERM;
		if (!(at & 0xffff))	/* a box of many GiB has many pages */
			cond_resched();
	}
	if (region_intersects(PFN_PHYS(pfn), PFN_PHYS(nr), IORESOURCE_MEM | IORESOURCE_BUSY,
			      IORES_DESC_NONE) != REGION_DISJOINT)
		return -EBUSY;
	return 0;
}

static int check(unsigned long pfn, unsigned long nr)
{
	unsigned long limit = 1UL << (boot_cpu_data.x86_phys_bits - PAGE_SHIFT);

	if (!nr || pfn >= limit || nr > limit - pfn)
		return -EINVAL;
	if (pfn < PFN_DOWN(SZ_1M))
		return -EPERM;
	switch (region_intersects(PFN_PHYS(pfn), PFN_PHYS(nr), IORESOURCE_SYSTEM_RAM,
				  IORES_DESC_NONE)) {
	case REGION_INTERSECTS:
		return check_ram(pfn, nr);
	case REGION_DISJOINT:
		return check_set_aside(pfn, nr);
	default:
		return -EPERM;	/* one mapping, one kind of memory */
	}
}

static struct kspawn_range *hold_pages(unsigned long pfn, unsigned long nr)
{
	struct kspawn_range *range = kzalloc(sizeof(*range), GFP_KERNEL_ACCOUNT);
	int ret;

	if (!range)
		return ERR_PTR(-ENOMEM);
	range->pfn = pfn;
	range->nr = nr;
	range->users = 1;
	mutex_lock(&ranges_lock);
	reap();
	/*
	 * Whoever goes online has passed the notifier before us and is refused
	 * here, or comes after us and is refused there.
	 */
	ret = check(pfn, nr);
	if (!ret && going_nr && overlap(pfn, nr, going_pfn, going_nr))
		ret = -EBUSY;
	if (!ret)
		list_add(&range->list, &ranges);
	mutex_unlock(&ranges_lock);
	if (!ret)
		return range;
	kfree(range);
	return ERR_PTR(ret);
}

/* Keep `size` bytes of memory from this kernel; an error if it uses them. */
struct kspawn_range *kspawn_mem_hold(u64 start, u64 size)
{
	if (!size || start + size < start)
		return ERR_PTR(-EINVAL);
	return hold_pages(PFN_DOWN(start), PFN_DOWN(start + size - 1) - PFN_DOWN(start) + 1);
}

/* True if another entry that stays covers this one. */
static bool covered(const struct kspawn_range *range)
{
	const struct kspawn_range *other;

	list_for_each_entry(other, &ranges, list)
		if (other != range && other->pfn <= range->pfn &&
		    range->pfn + range->nr <= other->pfn + other->nr)
			return true;
	return false;
}

void kspawn_mem_drop(struct kspawn_range *range)
{
	mutex_lock(&ranges_lock);
	if (--range->users == 0 && (!kspawn_cpu_any_started() || covered(range))) {
		list_del(&range->list);
		kfree(range);
	}
	mutex_unlock(&ranges_lock);
}

static void kspawn_vma_open(struct vm_area_struct *vma)
{
	struct kspawn_range *range = vma->vm_private_data;

	mutex_lock(&ranges_lock);
	range->users++;
	mutex_unlock(&ranges_lock);
}

static void kspawn_vma_close(struct vm_area_struct *vma)
{
	kspawn_mem_drop(vma->vm_private_data);
}

static const struct vm_operations_struct kspawn_vm_ops = {
	.open = kspawn_vma_open,
	.close = kspawn_vma_close,
};

int kspawn_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct kspawn_range *range;
	int ret;

	/*
	 * A private mapping would copy on write: never what was meant here. (Not
	 * VM_SHARED: that is off when the descriptor is read-only.)
	 */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_flags & VM_EXEC)
		return -EPERM;
	range = hold_pages(vma->vm_pgoff, vma_pages(vma));
	if (IS_ERR(range))
		return PTR_ERR(range);
	vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYEXEC);
	/* Write-back, the default: both kernels use it as the RAM it is. */
	ret = remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff, vma->vm_end - vma->vm_start,
			      vma->vm_page_prot);
	if (ret) {
		kspawn_mem_drop(range);
		return ret;
	}
	vma->vm_private_data = range;
	vma->vm_ops = &kspawn_vm_ops;
	return 0;
}

/* One entry of a page table that lies in memory we may look at; 0 is no entry. */
static u64 table_entry(u64 table, unsigned int index)
{
	unsigned long pfn = PFN_DOWN(table);
	u64 entry = 0, *map;

	mutex_lock(&ranges_lock);
	if (!check(pfn, 1)) {
		map = memremap(PFN_PHYS(pfn), PAGE_SIZE, MEMREMAP_WB);
		if (map) {
			entry = READ_ONCE(map[index]);
			memunmap(map);
		}
	}
	mutex_unlock(&ranges_lock);
	return entry;
}

/* What `va` leads to by the 4-level page table at `cr3`, or ~0. */
static u64 translate(u64 cr3, u64 va)
{
	u64 table = cr3, mask = 0;
	int shift;

	for (shift = 39; shift >= 12; shift -= 9) {
		u64 entry = table_entry(table, (va >> shift) & (PTRS_PER_PTE - 1));

		if (!(entry & _PAGE_PRESENT))
			return ~0ULL;
		table = entry & PHYSICAL_PAGE_MASK;
		mask = (1ULL << shift) - 1;
		if (shift < 39 && (entry & _PAGE_PSE))
			break;
	}
	return (table & ~mask) | (va & mask);
}

/*
 * A wrong entry point is a triple fault, which resets the whole machine. This
 * finds the mistakes of an honest caller, who could still change the tables.
 */
int kspawn_mem_entry_ok(u64 cr3, u64 rip)
{
	u64 target;
	int ret;

	if (offset_in_page(cr3) || translate(cr3, kspawn_trampoline()) != kspawn_trampoline())
		return -EINVAL;
	target = translate(cr3, rip);
	mutex_lock(&ranges_lock);
	ret = target == ~0ULL ? -EINVAL : check(PFN_DOWN(target), 1);
	mutex_unlock(&ranges_lock);
	return ret ? -EINVAL : 0;
}

int kspawn_mem_init(void)
{
	return register_memory_notifier(&kspawn_memory_nb);
}

/* No descriptor is open and no CPU started, so nobody uses a range. */
void kspawn_mem_exit(void)
{
	unregister_memory_notifier(&kspawn_memory_nb);
	reap();
}
