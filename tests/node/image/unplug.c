/*
 * unplug DEVICE: makes a bound loop device as small as a disk that is gone, 0 bytes, whoever has it mounted. From then on the
 * kernel refuses every read and write of it ("attempt to access beyond end of device", EIO); its backing file
 * keeps what was written before. losetup(8) has no word for it: a loop that starts behind the end of its file.
 */
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <sys/ioctl.h>

int main(int count, char **arguments) {
    struct loop_info64 info;
    int device;

    if (count != 2) return 2;
    device = open(arguments[1], O_RDONLY);
    if (device < 0 || ioctl(device, LOOP_GET_STATUS64, &info)) {
        perror(arguments[1]);
        return 1;
    }
    info.lo_offset = 1ULL << 50;
    /* The device goes by itself when its last user lets go. */
    info.lo_flags |= LO_FLAGS_AUTOCLEAR;
    if (ioctl(device, LOOP_SET_STATUS64, &info)) {
        perror(arguments[1]);
        return 1;
    }
    return 0;
}
