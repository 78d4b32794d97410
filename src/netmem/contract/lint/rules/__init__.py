"""One file a requirement; ``RULES`` in their order."""

from netmem.contract.lint.rules import r1, r2, r3, r4, r5, r6, r7

RULES = (r1.RULE, r2.RULE, r3.RULE, r4.RULE, r5.RULE, r6.RULE, r7.RULE)
