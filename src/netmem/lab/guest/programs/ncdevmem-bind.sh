# The program's own test: binding without a queue, with split off, and fewer channels than bound queues fail.
said ncdevmem -f eth0
