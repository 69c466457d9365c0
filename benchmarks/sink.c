/* Many subscribers of one feed, in one thread: cc -O2 sink.c -o sink
 *
 *   sink SOCKET CONNECTIONS HELLO REPLY READY EXPECTED RECORDS
 *
 * Opens CONNECTIONS to SOCKET (the path of a unix socket, or 127.0.0.1:PORT) and sends each the file HELLO, and the file
 * REPLY once the first bytes came back. Says "ready" when the text READY was seen on all. Then notes when each mark ("mark-" and nine digits)
 * arrives on each connection, whatever the format around it. When every connection had EXPECTED marks, or on SIGTERM,
 * writes to RECORDS, for each mark in order of arrival: connection (u32), mark (u32), CLOCK_REALTIME in ns (i64).
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

enum { DIGITS = 9, MARK = 5 + DIGITS, READ = 1 << 18, TAIL = 64 };

struct record { uint32_t connection, mark; int64_t at; };
/* What is kept of the last read, so that a text cut in two is still found. */
struct subscriber { int socket, ready, replied; uint32_t marks; size_t kept; char tail[TAIL]; };

static volatile sig_atomic_t stopping;
static void stop(int number) { (void)number; stopping = 1; }

int main(int argc, char **argv) {
    if (argc != 8) { fprintf(stderr, "usage: see the head of sink.c\n"); return 2; }
    const uint32_t count = strtoul(argv[2], 0, 10), expected = strtoul(argv[6], 0, 10);
    size_t hello_length, reply_length, ready_length = strlen(argv[5]);
    char *hello = slurp(argv[3], &hello_length), *reply = slurp(argv[4], &reply_length);
    const size_t keep = (ready_length > MARK ? ready_length : MARK) - 1;
    struct subscriber *subscribers = calloc(count, sizeof *subscribers);
    size_t recorded = 0, room = (size_t)count * (expected + 16);
    struct record *records = malloc(room * sizeof *records);
    static char buffer[TAIL + READ];
    uint32_t ready = 0, complete = 0;
    int poll = epoll_create1(0);
    if (keep >= TAIL) die("READY is too long");
    signal(SIGTERM, stop);
    signal(SIGPIPE, SIG_IGN);
    for (uint32_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        subscribers[i].socket = dial(argv[1]);
        if (write(subscribers[i].socket, hello, hello_length) != (ssize_t)hello_length) die("hello");
        epoll_ctl(poll, EPOLL_CTL_ADD, subscribers[i].socket, &event);
    }
    while (!stopping && complete < count) {
        struct epoll_event events[64];
        int found = epoll_wait(poll, events, 64, 1000);
        for (int e = 0; e < found; e++) {
            struct subscriber *it = &subscribers[events[e].data.u32];
            memcpy(buffer, it->tail, it->kept);
            ssize_t got = read(it->socket, buffer + it->kept, READ);
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            if (got <= 0) { fprintf(stderr, "connection %u was closed\n", events[e].data.u32); stopping = 1; break; }
            if (!it->replied) {
                it->replied = 1;
                if (reply_length && write(it->socket, reply, reply_length) != (ssize_t)reply_length) die("reply");
            }
            size_t length = it->kept + got;
            if (!it->ready && memmem(buffer, length, argv[5], ready_length)) {
                it->ready = 1;
                if (++ready == count) { puts("ready"); fflush(stdout); }
            }
            char *from = buffer, *end = buffer + length, *mark;
            while ((mark = memmem(from, end - from, "mark-", 5)) && end - mark >= MARK) {
                char digits[DIGITS + 1] = {0};
                memcpy(digits, mark + 5, DIGITS);
                if (recorded < room)
                    records[recorded++] = (struct record){events[e].data.u32, (uint32_t)strtoul(digits, 0, 10),
                                                          now.tv_sec * 1000000000LL + now.tv_nsec};
                if (++it->marks == expected) complete++;
                from = mark + MARK;
            }
            it->kept = (size_t)(end - from) < keep ? (size_t)(end - from) : keep;
            memcpy(it->tail, end - it->kept, it->kept);
        }
    }
    FILE *out = fopen(argv[7], "wb");
    if (!out || fwrite(records, sizeof *records, recorded, out) != recorded || fclose(out)) die(argv[7]);
    return complete == count ? 0 : 3;
}
