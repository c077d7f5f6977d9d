// SPDX-License-Identifier: GPL-2.0
/* CPUs: who may be started, INIT and SIPI, and keeping this kernel off them. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <asm/apic.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/smp.h>
#include <asm/tsc.h>

#include "internal.h"

#define ACK_TIMEOUT_MS	1000
/* From INIT to SIPI, and between the edges of INIT: as Linux on old hardware. */
#define INIT_DELAY_US	10000
/* For the first SIPI; an emulated CPU may have to wait for its turn. */
#define SIPI_PATIENCE_MS	20
/* An xAPIC takes an IPI within microseconds; a broken one must not hang us. */
#define ICR_SPINS	100000

static unsigned int bsp = KSPAWN_NO_APIC_ID;
module_param(bsp, uint, 0444);
MODULE_PARM_DESC(bsp, "APIC id of the machine's bootstrap processor, when it is not online in this kernel");

/* CPUs that run something of ours: changed by calls and by a guard's timer. */
static struct cpumask kspawn_started;
/* Those that are between the two halves of a guard's stop. */
static struct cpumask kspawn_stopping;
/* The descriptor at whose close a CPU gets INIT; under kspawn_lock. */
static DEFINE_PER_CPU(struct kspawn_file *, kspawn_tied);

static int kspawn_prepare_state, kspawn_online_state;

static void kspawn_icr(u32 apic_id, u32 low)
{
	unsigned long flags;
	int spins = ICR_SPINS;

	if (x2apic_mode) {
		/* This write is not serialising: the fence SDM 11.12.3 wants. */
		asm volatile("mfence; lfence" : : : "memory");
		native_x2apic_icr_write(low, apic_id);
		return;
	}
	local_irq_save(flags);	/* the two halves must not be torn apart */
	/* Linux waits before it sends, not after: its last IPI may still be here. */
	while ((native_apic_mem_read(APIC_ICR) & APIC_ICR_BUSY) && --spins)
		cpu_relax();
	spins = ICR_SPINS;
	native_apic_mem_write(APIC_ICR2, SET_XAPIC_DEST_FIELD(apic_id));
	native_apic_mem_write(APIC_ICR, low);
	while ((native_apic_mem_read(APIC_ICR) & APIC_ICR_BUSY) && --spins)
		cpu_relax();
	local_irq_restore(flags);
}

static u32 kspawn_max_apic_id(void)
{
	/* The highest value of each mode addresses all CPUs. */
	return x2apic_mode ? 0xfffffffe : 0xfe;
}

static void kspawn_mark_stopped(unsigned int cpu)
{
	per_cpu(kspawn_tied, cpu) = NULL;
	if (cpumask_test_and_clear_cpu(cpu, &kspawn_started))
		module_put(THIS_MODULE);
}

/* First half of a stop, for a guard: any context. False: nothing runs there. */
bool kspawn_cpu_init_assert(unsigned int cpu)
{
	if (!cpumask_test_cpu(cpu, &kspawn_started))
		return false;
	cpumask_set_cpu(cpu, &kspawn_stopping);
	kspawn_icr(per_cpu(x86_cpu_to_apicid, cpu),
		   APIC_INT_LEVELTRIG | APIC_INT_ASSERT | APIC_DM_INIT);
	return true;
}

/* Second half, 10 ms later; only then may this kernel use the CPU. */
void kspawn_cpu_init_deassert(unsigned int cpu)
{
	if (!cpumask_test_cpu(cpu, &kspawn_stopping))
		return;	/* nothing ran there; what was started since is not the guard's */
	/* Else stopped meanwhile, and perhaps online again. */
	if (cpumask_test_cpu(cpu, &kspawn_started)) {
		kspawn_icr(per_cpu(x86_cpu_to_apicid, cpu), APIC_INT_LEVELTRIG | APIC_DM_INIT);
		kspawn_mark_stopped(cpu);
	}
	cpumask_clear_cpu(cpu, &kspawn_stopping);
}

static void kspawn_send_init(u32 apic_id)
{
	kspawn_icr(apic_id, APIC_INT_LEVELTRIG | APIC_INT_ASSERT | APIC_DM_INIT);
	usleep_range(INIT_DELAY_US, INIT_DELAY_US + 1000);
	kspawn_icr(apic_id, APIC_INT_LEVELTRIG | APIC_DM_INIT);
}

/*
 * The logical number of a CPU that may get INIT, or an error. Called with
 * cpus_read_lock() held, so that it stays offline.
 */
int kspawn_cpu_check(u32 apic_id, u32 flags)
{
	unsigned int cpu;

	/* INIT lets the bootstrap processor start the firmware, not wait. */
	if (bsp == KSPAWN_NO_APIC_ID || apic_id == bsp)
		return -EPERM;
	if (apic_id > kspawn_max_apic_id())
		return -ERANGE;
	for_each_present_cpu(cpu) {
		if (per_cpu(x86_cpu_to_apicid, cpu) != apic_id)
			continue;
		if (cpu_online(cpu))
			return -EBUSY;
		/*
		 * A spawned kernel lists all CPUs of the machine, also those
		 * that the kernel beside it runs on.
		 */
		if (!cpu_data(cpu).initialized && !(flags & KSPAWN_START_FOREIGN))
			return -EACCES;
		return cpu;
	}
	return -ENODEV;
}

static bool kspawn_acked(const u32 *ack, unsigned int ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(ms);

	while (!READ_ONCE(*ack) && time_before(jiffies, end))
		usleep_range(100, 200);
	return READ_ONCE(*ack);
}

static int kspawn_sipi(unsigned int cpu, u32 apic_id, const u32 *ack)
{
	int i;

	kspawn_send_init(apic_id);
	/*
	 * A second one only if the first was missed. An emulated CPU latches it
	 * while it waits for its turn, takes a later INIT first and then this:
	 * what was stopped would run again.
	 */
	for (i = 0; i < 2; i++) {
		kspawn_icr(apic_id, APIC_DM_STARTUP | (kspawn_trampoline() >> PAGE_SHIFT));
		if (kspawn_acked(ack, i ? ACK_TIMEOUT_MS : SIPI_PATIENCE_MS))
			return 0;
	}
	/* It must not wake up later and find another trampoline. */
	kspawn_send_init(apic_id);
	pr_warn("CPU %u (APIC id %u) does not answer\n", cpu, apic_id);
	return -ETIMEDOUT;
}

int kspawn_cpu_start(struct kspawn_file *kf, const struct kspawn_start *s)
{
	int cpu, ret;

	cpus_read_lock();
	cpu = kspawn_cpu_check(s->apic_id, s->flags);
	ret = cpu < 0 ? cpu : kspawn_mem_entry_ok(s->cr3, s->rip);
	if (ret)
		goto out;
	/*
	 * Or the second half of a guard's stop would take this for what it
	 * stopped. Its timer, which only we could cancel, ends the wait.
	 */
	while (cpumask_test_cpu(cpu, &kspawn_stopping))
		usleep_range(100, 200);
	/* Marked before it runs, so that it never runs and can be onlined. */
	if (cpumask_test_and_set_cpu(cpu, &kspawn_started)) {
		ret = -EALREADY;
		goto out;
	}
	__module_get(THIS_MODULE);
	ret = kspawn_sipi(cpu, s->apic_id, kspawn_trampoline_set(s->rip, s->cr3, s->rsi));
	if (ret || (s->flags & KSPAWN_START_OWN))
		kspawn_mark_stopped(cpu);
	else	/* always: a guard that fired meanwhile may have left an earlier one */
		per_cpu(kspawn_tied, cpu) = s->flags & KSPAWN_START_TIED ? kf : NULL;
out:
	cpus_read_unlock();
	return ret;
}

int kspawn_cpu_stop(const struct kspawn_stop *s)
{
	int cpu;

	cpus_read_lock();
	cpu = kspawn_cpu_check(s->apic_id, s->flags);
	if (cpu >= 0) {
		kspawn_send_init(s->apic_id);
		kspawn_mark_stopped(cpu);
	}
	cpus_read_unlock();
	return min(cpu, 0);
}

/* The descriptor is closed: its tied CPUs stop. */
void kspawn_cpu_release(struct kspawn_file *kf)
{
	unsigned int cpu;

	cpus_read_lock();
	for_each_cpu(cpu, &kspawn_started) {
		if (per_cpu(kspawn_tied, cpu) != kf)
			continue;
		kspawn_send_init(per_cpu(x86_cpu_to_apicid, cpu));
		kspawn_mark_stopped(cpu);
	}
	cpus_read_unlock();
}

bool kspawn_cpu_any_started(void)
{
	return !cpumask_empty(&kspawn_started);
}

/* Bringing a CPU online would stop, by INIT, the kernel that runs on it. */
static int kspawn_cpu_prepare(unsigned int cpu)
{
	return cpumask_test_cpu(cpu, &kspawn_started) ? -EBUSY : 0;
}

/* Runs on each CPU that is or comes online: the hardware says who is the BSP. */
static int kspawn_cpu_online(unsigned int cpu)
{
	u32 low, high __maybe_unused, apic_id = per_cpu(x86_cpu_to_apicid, cpu);

	rdmsr(MSR_IA32_APICBASE, low, high);
	if (low & MSR_IA32_APICBASE_BSP) {
		if (bsp != KSPAWN_NO_APIC_ID && bsp != apic_id)
			pr_warn("the bootstrap processor is APIC id %u, not %u\n", apic_id, bsp);
		bsp = apic_id;
	}
	return 0;
}

void kspawn_cpu_info(struct kspawn_info *info)
{
	if (x2apic_mode)
		info->flags |= KSPAWN_INFO_X2APIC;
	if (bsp != KSPAWN_NO_APIC_ID)
		info->capabilities |= KSPAWN_CAP_START | KSPAWN_CAP_GUARD;
	info->tsc_khz = tsc_khz;
	info->bsp_apic_id = bsp;
	info->boot_apic_id = per_cpu(x86_cpu_to_apicid, 0);
	info->max_apic_id = kspawn_max_apic_id();
	info->nr_started = cpumask_weight(&kspawn_started);
}

int kspawn_cpu_init(void)
{
	unsigned int told = bsp;
	int ret;

	ret = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "kspawn:online", kspawn_cpu_online, NULL);
	if (ret < 0)
		return ret;
	kspawn_online_state = ret;
	if (told != KSPAWN_NO_APIC_ID && told != bsp) {
		ret = -EINVAL;	/* who is wrong in this is not to be trusted in more */
		goto online;
	}
	ret = cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN, "kspawn:prepare",
					kspawn_cpu_prepare, NULL);
	if (ret < 0)
		goto online;
	kspawn_prepare_state = ret;
	return 0;
online:
	cpuhp_remove_state_nocalls(kspawn_online_state);
	return ret;
}

void kspawn_cpu_exit(void)
{
	cpuhp_remove_state_nocalls(kspawn_prepare_state);
	cpuhp_remove_state_nocalls(kspawn_online_state);
}
