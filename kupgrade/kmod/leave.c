// SPDX-License-Identifier: GPL-2.0
/* The trampoline in low memory, and this kernel's end. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/acpi.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <asm/apic.h>
#include <asm/e820/api.h>
#include <asm/kvm_para.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/tlbflush.h>

#include "internal.h"

#define PAGES		5	/* code, PML4, PDPT, PD, bridge: see trampoline.S */
#define PML4		0x1000
#define PDPT		0x2000
#define PD		0x3000
#define BRIDGE		0x4000
#define TABLE		(_PAGE_PRESENT | _PAGE_RW)
/* For interrupts on their way, an emulated or virtual APIC's too. */
#define PENDING_US	200
/* A SIPI names a page below 640 KiB; pages 0 and up to 4 KiB belong to firmware. */
#define LOWEST		0x1000
#define HIGHEST		0xa0000

#define OFF(symbol)	((symbol) - kspawn_blob)

static unsigned long trampoline = 0x10000;
module_param(trampoline, ulong, 0444);
MODULE_PARM_DESC(trampoline, "physical address of five free pages below 640 KiB (default 0x10000); kernels that run at the same time need different ones");

struct kspawn_ioapic {
	void __iomem *regs;
};

static struct kspawn_ioapic *ioapics;
static unsigned int nr_kspawn_ioapics;

unsigned long kspawn_trampoline(void)
{
	return trampoline;
}

static void kspawn_table_set(u64 *table, u64 first)
{
	WRITE_ONCE(table[0], first);
	memset(table + 1, 0, PAGE_SIZE - sizeof(*table));
}

/*
 * Write everything anew for each use, under kspawn_lock: nothing of it has to
 * survive in memory that another kernel may see as its own. The CPU that was
 * started last may have two instructions to go here (a hypervisor may stop it
 * for long between them): code and entries in use become what they were, and
 * nothing else in between.
 *
 * Returns the word that becomes 1 when the CPU has taken the arguments.
 */
u32 *kspawn_trampoline_set(u64 rip, u64 cr3, u64 rsi)
{
	char *page = __va(trampoline);
	u64 *args = (u64 *)(page + OFF(kspawn_blob_args));
	size_t size = kspawn_blob_end - kspawn_blob;

	memcpy(page, kspawn_blob, size);
	memset(page + size, 0, PAGE_SIZE - size);
	memset(page + BRIDGE, 0, PAGE_SIZE);
	*(u32 *)(page + OFF(kspawn_blob_gdtr) + 2) += trampoline;
	*(u32 *)(page + OFF(kspawn_blob_far32)) += trampoline;
	*(u32 *)(page + OFF(kspawn_blob_far64)) += trampoline;
	kspawn_table_set((u64 *)(page + PML4), (trampoline + PDPT) | TABLE);
	kspawn_table_set((u64 *)(page + PDPT), (trampoline + PD) | TABLE);
	kspawn_table_set((u64 *)(page + PD), TABLE | _PAGE_PSE);
	args[0] = rip;
	args[1] = cr3;
	args[2] = rsi;
	wmb();	/* all of it before the SIPI */
	return (u32 *)&args[3];
}

static void kspawn_lapic_mask(u32 reg)
{
	if (x2apic_mode) {
		u32 low, high;

		rdmsr(APIC_BASE_MSR + (reg >> 4), low, high);
		wrmsr(APIC_BASE_MSR + (reg >> 4), low | APIC_LVT_MASKED, high);
	} else {
		native_apic_mem_write(reg, native_apic_mem_read(reg) | APIC_LVT_MASKED);
	}
}

/* No timer, NMI pin or thermal interrupt may hit a CPU that has no IDT. */
static void kspawn_lapic_quiet(void)
{
	u32 version, high __maybe_unused, max;

	if (x2apic_mode)
		rdmsr(APIC_BASE_MSR + (APIC_LVR >> 4), version, high);
	else
		version = native_apic_mem_read(APIC_LVR);
	max = GET_APIC_MAXLVT(version);
	kspawn_lapic_mask(APIC_LVTT);
	kspawn_lapic_mask(APIC_LVT0);
	kspawn_lapic_mask(APIC_LVT1);
	if (max >= 3)
		kspawn_lapic_mask(APIC_LVTERR);
	if (max >= 4)
		kspawn_lapic_mask(APIC_LVTPC);
	if (max >= 5)
		kspawn_lapic_mask(APIC_LVTTHMR);
	if (max >= 6)
		kspawn_lapic_mask(APIC_LVTCMCI);
}

/*
 * A hypervisor writes clock, steal time and page fault notices of this CPU into
 * memory that soon belongs to another kernel. Linux's own way of telling it to
 * stop runs for CPUs that go offline and at reboot; for this last one it is here.
 */
static void kspawn_kvm_quiet(void)
{
	u32 base, max, signature[3], features;

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return;
	/* The kernel does not export what it found; 0x100 on: behind Hyper-V's leaves */
	for (base = KVM_CPUID_SIGNATURE; base <= KVM_CPUID_SIGNATURE + 0x100; base += 0x100) {
		cpuid(base, &max, &signature[0], &signature[1], &signature[2]);
		if (memcmp(signature, KVM_SIGNATURE, sizeof(signature)))
			continue;
		features = cpuid_eax(base | KVM_CPUID_FEATURES);
		if (features & BIT(KVM_FEATURE_ASYNC_PF))
			wrmsr(MSR_KVM_ASYNC_PF_EN, 0, 0);
		if (features & BIT(KVM_FEATURE_PV_EOI))
			wrmsr(MSR_KVM_PV_EOI_EN, 0, 0);
		if (features & BIT(KVM_FEATURE_STEAL_TIME))
			wrmsr(MSR_KVM_STEAL_TIME, 0, 0);
		if (features & BIT(KVM_FEATURE_CLOCKSOURCE2))
			wrmsr(MSR_KVM_SYSTEM_TIME_NEW, 0, 0);
		return;
	}
}

/* Level interrupts nobody acknowledges would otherwise flood the next kernel. */
static void kspawn_ioapics_quiet(void)
{
	unsigned int i, line, last;

	for (i = 0; i < nr_kspawn_ioapics; i++) {
		void __iomem *regs = ioapics[i].regs;

		writel(1, regs);	/* version register: bits 16-23, last line */
		last = (readl(regs + 0x10) >> 16) & 0xff;
		for (line = 0; line <= last; line++) {
			writel(0x10 + 2 * line, regs);
			writel(APIC_LVT_MASKED, regs + 0x10);
		}
	}
}

/* Runs on every CPU, when all have come so far, interrupts off. */
static int kspawn_go(void *unused)
{
	unsigned long cr4 = native_read_cr4();
	bool first = smp_processor_id() == cpumask_first(cpu_online_mask);

	preempt_disable();
	if (first)
		kspawn_ioapics_quiet();
	kspawn_lapic_quiet();
	/*
	 * What is pending by now is served here: the next kernel would take a
	 * stale interrupt of our timer for one of its own.
	 */
	local_irq_enable();
	udelay(PENDING_US);
	local_irq_disable();
	/* A handler may have set up its line or the timer anew. */
	if (first)
		kspawn_ioapics_quiet();
	kspawn_lapic_quiet();
	kspawn_kvm_quiet();
	/* All may take this way at once: it has no stack and writes nothing that differs. */
	kspawn_jump(trampoline + BRIDGE, cr4 & (X86_CR4_PAE | X86_CR4_LA57), trampoline,
		    trampoline + OFF(kspawn_blob_leave));
	unreachable();
}

int kspawn_leave(const struct kspawn_leave *l)
{
	u64 *bridge = __va(trampoline + BRIDGE);
	unsigned long cr4 = native_read_cr4();
	int ret;

	/* In VMX operation CR4.VMXE cannot be cleared: unload KVM first. */
	if ((num_online_cpus() != 1 && !(l->flags & KSPAWN_LEAVE_ALL)) || (cr4 & X86_CR4_VMXE))
		return -EBUSY;
	ret = kspawn_mem_entry_ok(l->cr3, l->rip);
	if (ret)
		return ret;
	pr_notice("this kernel ends here\n");
	kspawn_trampoline_set(l->rip, l->cr3, l->rsi);
	memcpy(bridge, __va(read_cr3_pa()), PAGE_SIZE);
	/* With five levels the root's first entry wants a PML4, else a PDPT. */
	bridge[0] = (trampoline + ((cr4 & X86_CR4_LA57) ? PML4 : PDPT)) | TABLE;
	kspawn_pci_silence();
	return stop_machine(kspawn_go, NULL, cpu_online_mask);
}

void kspawn_leave_info(struct kspawn_info *info)
{
	if (native_read_cr4() & X86_CR4_LA57)
		info->flags |= KSPAWN_INFO_LA57;
	info->trampoline = trampoline;
	info->trampoline_size = PAGES * PAGE_SIZE;
	info->nr_ioapics = nr_kspawn_ioapics;
}

static void kspawn_ioapics_unmap(void)
{
	while (nr_kspawn_ioapics)
		iounmap(ioapics[--nr_kspawn_ioapics].regs);
	kfree(ioapics);
}

/*
 * The kernel does not export its list of I/O APICs, but the table it comes
 * from. Mapped now: at the end nothing may fail.
 */
static int kspawn_ioapics_map(const struct acpi_table_madt *madt)
{
	const char *at = (const char *)(madt + 1), *end = (const char *)madt + madt->header.length;
	const struct acpi_subtable_header *entry;

	for (; at + sizeof(*entry) <= end; at += entry->length) {
		const struct acpi_madt_io_apic *ioapic = (const void *)at;
		struct kspawn_ioapic *bigger;

		entry = (const void *)at;
		if (entry->length < sizeof(*entry))
			break;
		if (entry->type != ACPI_MADT_TYPE_IO_APIC || at + sizeof(*ioapic) > end)
			continue;
		bigger = krealloc_array(ioapics, nr_kspawn_ioapics + 1, sizeof(*ioapics),
					GFP_KERNEL);
		if (!bigger)
			return -ENOMEM;
		ioapics = bigger;
		ioapics[nr_kspawn_ioapics].regs = ioremap(ioapic->address, 0x20);
		if (!ioapics[nr_kspawn_ioapics].regs)
			return -ENOMEM;
		nr_kspawn_ioapics++;
	}
	return 0;
}

/* Linux reserves all memory below 1 MiB and uses only a few pages near its top. */
static int kspawn_trampoline_free(void)
{
	unsigned long pfn = PFN_DOWN(trampoline);
	int i;

	if (offset_in_page(trampoline) || trampoline < LOWEST ||
	    trampoline > HIGHEST - PAGES * PAGE_SIZE)
		return -EINVAL;
	for (i = 0; i < PAGES; i++) {
		struct page *page = pfn_to_online_page(pfn + i);

		if (!page || !PageReserved(page)) {
			pr_err("page %#lx is no reserved low memory\n", (pfn + i) << PAGE_SHIFT);
			return -EBUSY;
		}
		/* Reserved is also what the firmware keeps for itself, and writes to. */
		if (!e820__mapped_any(PFN_PHYS(pfn + i), PFN_PHYS(pfn + i + 1), E820_TYPE_RAM)) {
			pr_err("page %#lx is no RAM\n", (pfn + i) << PAGE_SHIFT);
			return -EBUSY;
		}
	}
	return 0;
}

int kspawn_leave_init(void)
{
	struct acpi_table_header *madt;
	int ret = kspawn_trampoline_free();

	if (ret || acpi_disabled || ACPI_FAILURE(acpi_get_table(ACPI_SIG_MADT, 0, &madt)))
		return ret;
	ret = kspawn_ioapics_map((const struct acpi_table_madt *)madt);
	acpi_put_table(madt);
	if (ret)
		kspawn_ioapics_unmap();
	return ret;
}

void kspawn_leave_exit(void)
{
	kspawn_ioapics_unmap();
}
