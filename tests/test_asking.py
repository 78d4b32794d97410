"""R2 on small set_ringparams: whether what was asked for is kept, on every way that reports success."""

from __future__ import annotations

import pytest

from test_lint import HEAD, MAIN, TOOL, edited, judged

OLD = "\tpriv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;\n\treturn 0;\n"
# Other places that a setting may be kept in, and somebody who reads them.
PLACES = [
    (HEAD, "\tbool fancy;\n", "\tbool fancy;\n\tstruct kernel_ethtool_ringparam kring;\n\tunsigned long flags;\n\tu32 split;\n"),
    (MAIN, "if (q->priv->split_on)", "if (q->priv->split_on || q->priv->kring.tcp_data_split || q->priv->flags & 1 || q->priv->split)"),
]  # fmt: skip

# $S is what is asked for, $E, $D and $U are ENABLED, DISABLED and UNKNOWN: (verdicts, body, helpers before it).
CASES = {
    "compared_then_forgotten": ("fail", "\tbool hds = $S == $E;\n\n\tif (ring->rx_pending == priv->fancy && hds == priv->split_on)\n\t\treturn 0;\n\treturn tiny_rx_refill(&priv->rx[0]);\n", ""),
    "chosen_then_thrown_away": ("fail", "\tstruct tiny_priv wanted = *priv;\n\tbool update = false;\n\tbool on = false;\n\n\tswitch ($S) {\n\tcase $E:\n\t\ton = true;\n\t\tbreak;\n\tdefault:\n\t\tbreak;\n\t}\n\tif (on != priv->split_on)\n\t\tupdate = true;\n\tif (!update)\n\t\treturn 0;\n\twanted.split_on = on;\n\treturn tiny_rx_refill(&priv->rx[0]);\n", ""),
    "overwritten": ("fail|partial", "\tpriv->split_on = $S == $E;\n\tpriv->split_on = false;\n\treturn 0;\n", ""),
    "printonly": ("fail", "\tif ($S == $E)\n\t\tnetdev_info(netdev, \"x\");\n\treturn 0;\n", ""),
    "refuse": ("fail", "\tif ($S == $E)\n\t\treturn -EOPNOTSUPP;\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "refuse_sw": ("fail", "\tswitch ($S) {\n\tcase $E:\n\t\treturn -EINVAL;\n\tdefault:\n\t\tbreak;\n\t}\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "refuse_ne": ("fail", "\tif ($S != $D)\n\t\treturn -EINVAL;\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "refuse_goto": ("fail", "\tint err = 0;\n\n\tif ($S == $E) {\n\t\terr = -EINVAL;\n\t\tgoto out;\n\t}\n\tpriv->split_on = $S == $E;\nout:\n\treturn err;\n", ""),
    "refuse_ternary": ("fail", "\tpriv->split_on = $S == $E;\n\treturn $S == $E ? -EINVAL : 0;\n", ""),
    "refuse_ternary2": ("fail", "\tpriv->split_on = $S == $E;\n\treturn ($S == $E) ? -EINVAL : tiny_rx_refill(&priv->rx[0]);\n", ""),
    "refuse_bool": ("fail", "\tbool on = $S == $E;\n\n\tif (on)\n\t\treturn -EINVAL;\n\tpriv->split_on = on;\n\treturn 0;\n", ""),
    "refuse_and": ("fail", "\tif ($S && $S != $D)\n\t\treturn -EINVAL;\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "refuse_gt": ("fail", "\tif ($S > $D)\n\t\treturn -EINVAL;\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "refuse_not": ("fail", "\tif (!($S == $U || $S == $D))\n\t\treturn -EINVAL;\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "running_only": ("partial", "\tif (netif_running(netdev))\n\t\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "sw_bool": ("pass", "\tbool hds;\n\n\tswitch ($S) {\n\tcase $U:\n\tcase $D:\n\t\thds = false;\n\t\tbreak;\n\tcase $E:\n\t\thds = true;\n\t\tbreak;\n\tdefault:\n\t\treturn -EINVAL;\n\t}\n\tif (hds != priv->split_on) {\n\t\tpriv->split_on = hds;\n\t\treturn tiny_rx_refill(&priv->rx[0]);\n\t}\n\treturn 0;\n", ""),
    "early_eq": ("pass", "\tbool hds = $S == $E;\n\n\tif (priv->split_on == hds)\n\t\treturn 0;\n\tpriv->split_on = hds;\n\treturn 0;\n", ""),
    "early_xor": ("pass", "\tbool hds = $S == $E;\n\n\tif (!(priv->split_on ^ hds))\n\t\treturn 0;\n\tpriv->split_on = hds;\n\treturn 0;\n", ""),
    "changed_var": ("pass", "\tbool hds = $S == $E;\n\tbool changed = hds != priv->split_on;\n\n\tif (!changed)\n\t\treturn 0;\n\tpriv->split_on = hds;\n\treturn 0;\n", ""),
    "changed_or": ("pass", "\tbool hds = $S == $E;\n\tbool changed = false;\n\n\tif (ring->rx_pending != priv->fancy)\n\t\tchanged = true;\n\tif (hds != priv->split_on)\n\t\tchanged = true;\n\tif (!changed)\n\t\treturn 0;\n\tpriv->split_on = hds;\n\treturn 0;\n", ""),
    "changed_oreq": ("pass", "\tbool hds = $S == $E;\n\tbool changed = ring->rx_pending != priv->fancy;\n\n\tchanged |= hds != priv->split_on;\n\tif (!changed)\n\t\treturn 0;\n\tpriv->split_on = hds;\n\treturn 0;\n", ""),
    "same_all": ("pass", "\tbool hds = $S == $E;\n\n\tif (ring->rx_pending == priv->fancy && hds == priv->split_on)\n\t\treturn 0;\n\tpriv->split_on = hds;\n\treturn 0;\n", ""),
    "whole_copy": ("pass", "\tpriv->kring = *kernel_ring;\n\treturn 0;\n", ""),
    "memcpy": ("pass", "\tmemcpy(&priv->kring, kernel_ring, sizeof(priv->kring));\n\treturn 0;\n", ""),
    "helper": ("pass", "\treturn tiny_apply(priv, kernel_ring);\n", "static int tiny_apply(struct tiny_priv *priv, struct kernel_ethtool_ringparam *kring)\n{\n\tpriv->split_on = kring->tcp_data_split == $E;\n\treturn 0;\n}"),
    "helper_err": ("pass", "\tint err = tiny_apply(priv, kernel_ring);\n\n\tif (err)\n\t\treturn err;\n\treturn 0;\n", "static int tiny_apply(struct tiny_priv *priv, struct kernel_ethtool_ringparam *kring)\n{\n\tpriv->split_on = kring->tcp_data_split == $E;\n\treturn 0;\n}"),
    "helper_void": ("pass", "\ttiny_apply(priv, kernel_ring);\n\treturn 0;\n", "static void tiny_apply(struct tiny_priv *priv, struct kernel_ethtool_ringparam *kring)\n{\n\tpriv->split_on = kring->tcp_data_split == $E;\n}"),
    "helper_refuses": ("fail", "\tpriv->split_on = $S == $E;\n\treturn tiny_chk(kernel_ring);\n", "static int tiny_chk(struct kernel_ethtool_ringparam *k)\n{\n\tif (k->tcp_data_split == $E)\n\t\treturn -EINVAL;\n\treturn 0;\n}"),
    "helper_refuses2": ("fail", "\tint err;\n\n\terr = tiny_chk(kernel_ring);\n\tif (err)\n\t\treturn err;\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", "static int tiny_chk(struct kernel_ethtool_ringparam *k)\n{\n\tif (k->tcp_data_split == $E)\n\t\treturn -EINVAL;\n\treturn 0;\n}"),
    "helper_refuses3": ("fail", "\tint err;\n\n\terr = tiny_chk(priv, $S);\n\tif (err)\n\t\treturn err;\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", "static int tiny_chk(struct tiny_priv *p, u8 k)\n{\n\treturn k == $E ? -EINVAL : 0;\n}"),
    "loop": ("pass", "\tint i;\n\n\tfor (i = 0; i < 4; i++)\n\t\tpriv->rx[i].index = $S == $E;\n\treturn 0;\n", ""),
    "bits": ("pass", "\tif ($S == $E)\n\t\tset_bit(0, &priv->flags);\n\telse\n\t\tclear_bit(0, &priv->flags);\n\treturn 0;\n", ""),
    "assign_bit": ("pass", "\t__assign_bit(0, &priv->flags, $S == $E);\n\treturn 0;\n", ""),
    "or_flag": ("pass", "\tif ($S == $E)\n\t\tpriv->flags |= 1;\n\telse\n\t\tpriv->flags &= ~1;\n\treturn 0;\n", ""),
    "tern_flag": ("pass", "\tpriv->flags = $S == $E ? priv->flags | 1 : priv->flags & ~1UL;\n\treturn 0;\n", ""),
    "oneway": ("pass", "\tpriv->flags &= ~1;\n\tif ($S == $E)\n\t\tpriv->flags |= 1;\n\treturn 0;\n", ""),
    "raw": ("pass", "\tpriv->split = $S;\n\treturn 0;\n", ""),
    "only_off": ("fail", "\tif ($S == $D)\n\t\tpriv->split_on = false;\n\treturn 0;\n", ""),
    "if_changed_raw": ("pass", "\tif (priv->split != $S) {\n\t\tpriv->split = $S;\n\t\treturn tiny_rx_refill(&priv->rx[0]);\n\t}\n\treturn 0;\n", ""),
    "rollback": ("pass|partial", "\tbool old = priv->split_on;\n\tint err;\n\n\tpriv->split_on = $S == $E;\n\terr = tiny_rx_refill(&priv->rx[0]);\n\tif (err)\n\t\tpriv->split_on = old;\n\treturn err;\n", ""),
    "stack_cfg": ("pass", "\tstruct tiny_priv cfg = *priv;\n\n\tcfg.split_on = $S == $E;\n\treturn tiny_reconf(priv, &cfg);\n", "static int tiny_reconf(struct tiny_priv *p, struct tiny_priv *c)\n{\n\tp->split_on = c->split_on;\n\treturn 0;\n}"),
    "stack_back": ("pass", "\tstruct tiny_priv cfg = *priv;\n\n\tcfg.split_on = $S == $E;\n\t*priv = cfg;\n\treturn 0;\n", ""),
    "stack_lost": ("fail", "\tstruct tiny_priv cfg = *priv;\n\n\tcfg.split_on = $S == $E;\n\treturn tiny_reconf(priv, &cfg);\n", "static int tiny_reconf(struct tiny_priv *p, struct tiny_priv *c)\n{\n\tp->fancy = c->fancy;\n\treturn 0;\n}"),
    "heap_cfg": ("pass", "\tstruct tiny_priv *cfg = kmemdup(priv, sizeof(*priv), GFP_KERNEL);\n\n\tcfg->split_on = $S == $E;\n\ttiny_swap(priv, cfg);\n\tkfree(cfg);\n\treturn 0;\n", "static void tiny_swap(struct tiny_priv *p, struct tiny_priv *c)\n{\n\tp->split_on = c->split_on;\n}"),
    "ptr_to_field": ("pass", "\tbool *on = &priv->split_on;\n\n\t*on = $S == $E;\n\treturn 0;\n", ""),
    "writeonce": ("pass", "\tWRITE_ONCE(priv->split_on, $S == $E);\n\treturn 0;\n", ""),
    "first_ring_then": ("partial", "\tif (ring->rx_pending != priv->fancy)\n\t\treturn tiny_rx_refill(&priv->rx[0]);\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "nothing_priv": ("fail", "\tpriv->fancy = ring->rx_pending;\n\treturn 0;\n", ""),
    "noop_fn": ("fail", "\ttiny_nop($S);\n\treturn 0;\n", "static void tiny_nop(u8 x)\n{\n}"),
    "extack_retval": ("fail", "\tif ($S == $E) {\n\t\tNL_SET_ERR_MSG(extack, \"no\");\n\t\treturn -EOPNOTSUPP;\n\t}\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "errvar": ("fail", "\tint err = -EOPNOTSUPP;\n\n\tif ($S != $E) {\n\t\terr = 0;\n\t\tpriv->split_on = false;\n\t}\n\treturn err;\n", ""),
    "enum_const": ("pass", "\tif ($S == 2)\n\t\tpriv->split_on = true;\n\telse\n\t\tpriv->split_on = false;\n\treturn 0;\n", ""),
    "mod_param": ("pass", "\tif ($S == $U)\n\t\treturn 0;\n\tpriv->split_on = $S == $E;\n\treturn 0;\n", ""),
    "neg_mode": ("pass", "\tif ($S != $E) {\n\t\tpriv->split_on = false;\n\t\treturn 0;\n\t}\n\tpriv->split_on = true;\n\treturn 0;\n", ""),
    "while_q": ("pass", "\tunsigned int n = 4;\n\n\twhile (n--)\n\t\ttiny_cmd(&priv->rx[n], $S == $E);\n\treturn 0;\n", "static void tiny_cmd(struct tiny_queue *q, bool on)\n{\n\twritel(on, q->ring);\n}"),
}  # fmt: skip


def said(text):
    for short, long in (
        ("$S", "kernel_ring->tcp_data_split"),
        ("$E", "ENABLED"),
        ("$D", "DISABLED"),
        ("$U", "UNKNOWN"),
    ):
        text = text.replace(short, long if short == "$S" else f"ETHTOOL_TCP_DATA_SPLIT_{long}")
    return text


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_asking_for_split(name, tmp_path):
    wanted, body, helpers = CASES[name]
    edits = [*PLACES, (TOOL, OLD, said(body))]
    if helpers:
        edits.append(
            (TOOL, "static int tiny_set_ringparam", f"{said(helpers)}\n\nstatic int tiny_set_ringparam")
        )
    verdict = judged(edited(tmp_path, *edits)).requirements["R2"]
    assert verdict.verdict in wanted.split("|"), verdict.why
