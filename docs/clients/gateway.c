/* Asks Canopy's gateway one question and prints the frames: cc -o gateway gateway.c
   ./gateway HOST PORT KEY '{"text": "Hello", "timestamp": 1}' */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *at;
    static char line[1 << 20];
    if (argc != 5 || getaddrinfo(argv[1], argv[2], &hints, &at) != 0) return 2;
    int s = socket(at->ai_family, at->ai_socktype, at->ai_protocol);
    if (s < 0 || connect(s, at->ai_addr, at->ai_addrlen) != 0) return 2;
    FILE *gateway = fdopen(s, "r+");
    fprintf(gateway, "%s\n%s\n", argv[3], argv[4]);
    fflush(gateway);
    while (fgets(line, sizeof line, gateway)) {
        fputs(line, stdout);
        if (strstr(line, "\"kind\":\"done\"")) return 0;
        if (strstr(line, "\"kind\":\"error\"")) return 1;
    }
    return 1;
}
