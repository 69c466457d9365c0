/* What the programs in C here need to be clients: the content of a file, and a connection. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static void die(const char *what) { perror(what); exit(1); }

/* All of the file at *path*, at most 64 KiB. */
static char *slurp(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    static char content[1 << 16];
    if (!file) die(path);
    *length = fread(content, 1, sizeof content, file);
    fclose(file);
    char *copy = malloc(*length + 1);
    memcpy(copy, content, *length);
    return copy;
}

/* A connection to the path of a unix socket, or to 127.0.0.1:PORT. */
static int dial(const char *address) {
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in internet = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const char *port = strrchr(address, ':');
    int fd = socket(port ? AF_INET : AF_UNIX, SOCK_STREAM, 0), failed;
    if (port) {
        internet.sin_port = htons(atoi(port + 1));
        failed = connect(fd, (struct sockaddr *)&internet, sizeof internet);
    } else {
        strncpy(local.sun_path, address, sizeof local.sun_path - 1);
        failed = connect(fd, (struct sockaddr *)&local, sizeof local);
    }
    if (fd < 0 || failed) die(address);
    return fd;
}
