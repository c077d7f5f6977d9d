// SPDX-License-Identifier: GPL-2.0
/* One PCI device at a time: still, and back, while its driver stays bound. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/pm.h>
#include <linux/pm_runtime.h>
#include <linux/slab.h>

#include "internal.h"

struct kspawn_quiesced {
	struct list_head list;
	struct pci_dev *pdev;
	const struct device_driver *driver;
	struct kspawn_file *owner;	/* NULL: kept */
};

/* Under kspawn_lock; each entry holds the device and this module. */
static LIST_HEAD(quiesced);

static struct kspawn_quiesced *find(const struct pci_dev *pdev)
{
	struct kspawn_quiesced *q;

	list_for_each_entry(q, &quiesced, list)
		if (q->pdev == pdev)
			return q;
	return NULL;
}

/*
 * What hibernation calls before it takes its image and after it is back, when
 * the device has lost its state. Callbacks that want the interrupts of the whole
 * machine off cannot be called for one device; drivers with such are refused.
 */
static const struct dev_pm_ops *usable_pm(const struct pci_dev *pdev)
{
	const struct dev_pm_ops *pm = pdev->dev.driver ? pdev->dev.driver->pm : NULL;

	if (!pm || !pm->freeze || !pm->restore || pm->freeze_noirq || pm->restore_noirq)
		return NULL;
	return pm;
}

static int freeze(struct kspawn_quiesced *q)
{
	struct pci_dev *pdev = q->pdev;
	struct device *dev = &pdev->dev;
	const struct dev_pm_ops *pm;
	int ret = -EOPNOTSUPP;

	device_lock(dev);
	pm = usable_pm(pdev);
	if (!pm)
		goto unlock;
	/* Awake until it is resumed, and so the bridges above it. */
	ret = pm_runtime_resume_and_get(dev);
	if (ret)
		goto unlock;
	ret = pm->freeze(dev);
	if (!ret && pm->freeze_late) {
		ret = pm->freeze_late(dev);
		/* As the PM core: what refused the first step is not thawed. */
		if (ret && pm->thaw)
			pm->thaw(dev);
	}
	if (ret) {
		pm_runtime_put(dev);
		goto unlock;
	}
	pci_save_state(pdev);
	q->driver = dev->driver;
unlock:
	device_unlock(dev);
	return ret;
}

static int thaw(struct kspawn_quiesced *q)
{
	struct pci_dev *pdev = q->pdev;
	struct device *dev = &pdev->dev;
	const struct dev_pm_ops *pm;
	int ret = -ENODEV;

	device_lock(dev);
	if (dev->driver == q->driver && pci_device_is_present(pdev)) {
		pm = dev->driver->pm;
		/* The other kernel may have left it asleep: do not trust our note. */
		pdev->current_state = PCI_UNKNOWN;
		pci_set_power_state(pdev, PCI_D0);
		pci_restore_state(pdev);
		ret = pm->restore_early ? pm->restore_early(dev) : 0;
		if (!ret)
			ret = pm->restore(dev);
	}
	device_unlock(dev);
	return ret;
}

static void forget(struct kspawn_quiesced *q)
{
	list_del(&q->list);
	pm_runtime_put(&q->pdev->dev);
	pci_dev_put(q->pdev);
	kfree(q);
	module_put(THIS_MODULE);
}

static struct pci_dev *device(const struct kspawn_pci *p)
{
	if (p->domain > INT_MAX)
		return NULL;
	return pci_get_domain_bus_and_slot(p->domain, p->bus, p->devfn);
}

int kspawn_pci_quiesce(struct kspawn_file *kf, const struct kspawn_pci *p)
{
	struct kspawn_file *owner = p->flags & KSPAWN_PCI_KEEP ? NULL : kf;
	struct pci_dev *pdev = device(p);
	struct kspawn_quiesced *q;
	int ret = -EINVAL;

	if (!pdev)
		return -ENODEV;
	if (pdev->hdr_type != PCI_HEADER_TYPE_NORMAL)
		goto put;
	q = find(pdev);
	if (q) {
		q->owner = owner;
		ret = 0;
		goto put;
	}
	ret = -ENOMEM;
	q = kzalloc(sizeof(*q), GFP_KERNEL);
	if (!q)
		goto put;
	q->pdev = pdev;
	ret = freeze(q);
	if (ret) {
		kfree(q);
		goto put;
	}
	q->owner = owner;
	list_add(&q->list, &quiesced);
	__module_get(THIS_MODULE);
	return 0;
put:
	pci_dev_put(pdev);
	return ret;
}

int kspawn_pci_resume(const struct kspawn_pci *p)
{
	struct pci_dev *pdev = device(p);
	struct kspawn_quiesced *q;
	int ret = -EALREADY;

	if (!pdev)
		return -ENODEV;
	q = find(pdev);
	if (q) {
		ret = thaw(q);
		/* A driver's error stays on record; a driver that is gone does not. */
		if (ret)
			pci_err(pdev, KBUILD_MODNAME ": cannot be resumed: %d\n", ret);
		if (!ret || ret == -ENODEV)
			forget(q);
	}
	pci_dev_put(pdev);
	return ret;
}

/* The descriptor is closed: its devices come back. */
void kspawn_pci_release(struct kspawn_file *kf)
{
	struct kspawn_quiesced *q, *next;
	int ret;

	list_for_each_entry_safe(q, next, &quiesced, list) {
		if (q->owner != kf)
			continue;
		ret = thaw(q);
		if (ret)
			pci_err(q->pdev, KBUILD_MODNAME ": cannot be resumed: %d\n", ret);
		forget(q);
	}
}

/*
 * At this kernel's end: a device that it still drives must not write into memory
 * that belongs to another kernel a moment later. Bridges pass on what others
 * send; quiesced devices are somebody else's, or still.
 */
void kspawn_pci_silence(void)
{
	struct pci_dev *pdev = NULL;

	for_each_pci_dev(pdev)
		if (pdev->dev.driver && pdev->hdr_type == PCI_HEADER_TYPE_NORMAL && !find(pdev))
			pci_clear_master(pdev);
}
