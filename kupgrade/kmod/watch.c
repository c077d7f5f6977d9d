// SPDX-License-Identifier: GPL-2.0
/* Panic flags: this kernel's last word. Guards: an eye on the other's reset. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/panic_notifier.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "internal.h"

#define DEFAULT_US	50
#define INIT_DELAY_MS	10

struct kspawn_panic {
	struct list_head list;
	struct kspawn_range *range;
	u32 *flag;
	u32 value;
};

/* Changed under kspawn_lock, read by a panicking kernel, which takes no lock. */
static LIST_HEAD(panics);

static int kspawn_on_panic(struct notifier_block *nb, unsigned long action, void *data)
{
	struct kspawn_panic *p;

	list_for_each_entry_rcu(p, &panics, list, true)
		WRITE_ONCE(*p->flag, p->value);
	wmb();	/* out before whatever the panic does next */
	return NOTIFY_DONE;
}

static struct notifier_block kspawn_panic_nb = {
	.notifier_call = kspawn_on_panic,
	.priority = INT_MAX,	/* first: the others may hang */
};

static void panic_withdraw(struct kspawn_file *kf)
{
	struct kspawn_panic *p = kf->panic;

	if (!p)
		return;
	kf->panic = NULL;
	list_del_rcu(&p->list);
	synchronize_rcu();
	memunmap(p->flag);
	kspawn_mem_drop(p->range);
	kfree(p);
}

/* `size` bytes of memory that this kernel does not use, mapped for us. */
static void *map(u64 address, u64 size, struct kspawn_range **range)
{
	void *mapped;

	if (address & (size - 1))
		return ERR_PTR(-EINVAL);
	*range = kspawn_mem_hold(address, size);
	if (IS_ERR(*range))
		return ERR_CAST(*range);
	mapped = memremap(address, size, MEMREMAP_WB);
	if (mapped)
		return mapped;
	kspawn_mem_drop(*range);
	return ERR_PTR(-ENOMEM);
}

int kspawn_panic_flag(struct kspawn_file *kf, const struct kspawn_panic_flag *f)
{
	struct kspawn_panic *p;
	int ret;

	if (!f->address) {
		panic_withdraw(kf);
		return 0;
	}
	p = kzalloc(sizeof(*p), GFP_KERNEL);
	if (!p)
		return -ENOMEM;
	p->value = f->value;
	p->flag = map(f->address, sizeof(*p->flag), &p->range);
	if (IS_ERR(p->flag)) {
		ret = PTR_ERR(p->flag);
		kfree(p);
		return ret;
	}
	panic_withdraw(kf);
	list_add_rcu(&p->list, &panics);
	kf->panic = p;
	return 0;
}

enum phase { WATCHING, STOPPING, DONE };

struct kspawn_watch {
	struct hrtimer timer;
	struct kspawn_file *kf;
	struct kspawn_range *range;
	u64 *word;
	u64 mask;
	ktime_t interval;
	enum phase phase;
	struct kspawn_event event;
	unsigned int nr;
	unsigned int cpus[];
};

static void guard_finish(struct kspawn_watch *w)
{
	struct kspawn_file *kf = w->kf;
	unsigned long flags;
	unsigned int i;

	for (i = 0; i < w->nr; i++)
		kspawn_cpu_init_deassert(w->cpus[i]);
	raw_spin_lock_irqsave(&kf->lock, flags);
	kf->event = w->event;
	WRITE_ONCE(kf->fired, true);
	raw_spin_unlock_irqrestore(&kf->lock, flags);
	WRITE_ONCE(w->phase, DONE);
	irq_work_queue(&kf->wake);
}

/*
 * A hard timer interrupt, not a thread: what delays it is interrupts being off,
 * not who else wants the CPU. The CPUs listed cannot come online here while they
 * are started, so no lock is needed against CPU hotplug.
 */
static enum hrtimer_restart guard_tick(struct hrtimer *timer)
{
	struct kspawn_watch *w = container_of(timer, struct kspawn_watch, timer);
	unsigned int i;
	u64 value;

	if (w->phase == STOPPING) {
		guard_finish(w);
		return HRTIMER_NORESTART;
	}
	value = READ_ONCE(*w->word);
	if (!(value & w->mask)) {
		hrtimer_forward_now(timer, w->interval);
		return HRTIMER_RESTART;
	}
	for (i = 0; i < w->nr; i++)
		w->event.nr_stopped += kspawn_cpu_init_assert(w->cpus[i]);
	w->event.time_ns = ktime_get_ns();
	w->event.value = value;
	w->phase = STOPPING;
	hrtimer_forward_now(timer, ms_to_ktime(INIT_DELAY_MS));
	return HRTIMER_RESTART;
}

static void guard_stop(struct kspawn_file *kf)
{
	struct kspawn_watch *w = kf->guard;

	if (!w)
		return;
	kf->guard = NULL;
	hrtimer_cancel(&w->timer);
	if (w->phase == STOPPING)	/* cancelled in between: finish what it began */
		guard_finish(w);
	memunmap(w->word);
	kspawn_mem_drop(w->range);
	kfree(w);
}

/* The ids as logical CPUs; each one as for STOP, and started. */
static int guard_cpus(struct kspawn_watch *w, u64 ids)
{
	const u32 __user *from = u64_to_user_ptr(ids);
	unsigned int i;
	int cpu = 0;
	u32 id;

	for (i = 0; i < w->nr; i++) {
		if (get_user(id, from + i))
			return -EFAULT;
		cpus_read_lock();
		cpu = kspawn_cpu_check(id, KSPAWN_START_FOREIGN);
		cpus_read_unlock();
		if (cpu < 0)
			return cpu;
		w->cpus[i] = cpu;
	}
	return 0;
}

int kspawn_guard(struct kspawn_file *kf, const struct kspawn_guard *g)
{
	u32 interval = g->interval_us ?: DEFAULT_US;
	struct kspawn_watch *w;
	int ret;

	if (!g->nr_apic_ids) {
		guard_stop(kf);
		return 0;
	}
	if (!g->mask || g->nr_apic_ids > nr_cpu_ids ||
	    interval < KSPAWN_GUARD_MIN_US || interval > KSPAWN_GUARD_MAX_US)
		return -EINVAL;
	if (kf->guard && READ_ONCE(kf->guard->phase) != DONE)
		return -EBUSY;
	w = kzalloc(struct_size(w, cpus, g->nr_apic_ids), GFP_KERNEL);
	if (!w)
		return -ENOMEM;
	w->kf = kf;
	w->nr = g->nr_apic_ids;
	w->mask = g->mask;
	w->interval = ns_to_ktime((u64)interval * NSEC_PER_USEC);
	w->event.address = g->address;
	ret = guard_cpus(w, g->apic_ids);
	if (ret)
		goto free;
	w->word = map(g->address, sizeof(*w->word), &w->range);
	if (IS_ERR(w->word)) {
		ret = PTR_ERR(w->word);
		goto free;
	}
	guard_stop(kf);	/* one that fired */
	/* hrtimer_setup() replaced hrtimer_init() in v6.15. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&w->timer, guard_tick, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
#else
	hrtimer_init(&w->timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
	w->timer.function = guard_tick;
#endif
	kf->guard = w;
	hrtimer_start(&w->timer, w->interval, HRTIMER_MODE_REL_HARD);
	return 0;
free:
	kfree(w);
	return ret;
}

bool kspawn_guard_has_event(struct kspawn_file *kf)
{
	return READ_ONCE(kf->fired);
}

/* Take the event, once. */
bool kspawn_guard_event(struct kspawn_file *kf, struct kspawn_event *event)
{
	bool fired;

	raw_spin_lock_irq(&kf->lock);
	fired = kf->fired;
	*event = kf->event;
	WRITE_ONCE(kf->fired, false);
	raw_spin_unlock_irq(&kf->lock);
	return fired;
}

/* Waking takes a lock that a hard timer must not take with PREEMPT_RT. */
static void kspawn_wake(struct irq_work *work)
{
	wake_up_interruptible(&container_of(work, struct kspawn_file, wake)->wait);
}

void kspawn_watch_open(struct kspawn_file *kf)
{
	raw_spin_lock_init(&kf->lock);
	init_waitqueue_head(&kf->wait);
	init_irq_work(&kf->wake, kspawn_wake);
}

void kspawn_watch_release(struct kspawn_file *kf)
{
	guard_stop(kf);
	irq_work_sync(&kf->wake);
	panic_withdraw(kf);
}

int kspawn_watch_init(void)
{
	return atomic_notifier_chain_register(&panic_notifier_list, &kspawn_panic_nb);
}

void kspawn_watch_exit(void)
{
	atomic_notifier_chain_unregister(&panic_notifier_list, &kspawn_panic_nb);
}
