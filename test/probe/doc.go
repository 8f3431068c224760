// Command probe is what the tests run inside containers: it shows what a process there sees and does what a bad one does.
//
//	probe serve ADDR TEXT          answer every HTTP request with TEXT and the client's address; sctp is not served
//	probe health ADDR FILE         answer HTTP requests and gRPC health checks: well while FILE is there, ill while it is not
//	probe udp ADDR                 send every datagram back
//	probe echo ADDR                send back what comes over each TCP connection, until its end
//	probe get URL                  print what an HTTP server says
//	probe lines RATE PREFIX        write "PREFIX N" RATE times a second, N from 0, to standard output
//	probe bytes N CHAR             write N bytes without a newline, then end
//	probe eat MIB                  take memory a MiB at a time, touch it, then sleep
//	probe fork N                   start N children that ignore every signal they can, each with a child of its own
//	probe ignore                   ignore SIGTERM and print the names of signals that come
//	probe signals                  print the name of the first signal that comes, then exit with 0
//	probe exit CODE [AFTER]        exit with CODE, after a duration
//	probe call NAME                do one system call and print "ok" or the errno's name
//	probe reach NAME               print what reading and tracing the process with that name gives, with "new" the next one to come
//	probe orphan                   leave a child behind that holds standard output for a minute, and exit
//	probe euid                     print the effective user
//	probe stdin                    print what comes from standard input until its end
//
// Exit status 64 means that the arguments were wrong, 1 that it did not work.
package main
