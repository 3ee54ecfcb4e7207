SUMMARY = "Agent, units and camera program of edgekd"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

# agent.pyz comes from a bundle: tar -xf model.edgekd agent.pyz
FILESEXTRAPATHS:prepend := "${THISDIR}/files:${EDGEKD_FIRMWARE}:${EDGEKD_FIRMWARE}/systemd:${EDGEKD_FIRMWARE}/..:"
SRC_URI = " \
    file://agent.pyz \
    file://install.conf \
    file://install_image.sh \
    file://commit_when_healthy.py \
    file://camera_service.py \
    file://camera.service \
    file://edgekd-boot.service \
    file://edgekd-commit.service \
    file://edgekd-install.service \
    file://edgekd-renew.service \
    file://edgekd-renew.timer \
    file://edgekd-retry.service \
"
S = "${WORKDIR}"

inherit allarch systemd useradd

USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --no-create-home --home-dir /var/lib/edgekd --shell /sbin/nologin --groups video edgekd"

PACKAGES = "${PN} ${PN}-camera"
SYSTEMD_PACKAGES = "${PN} ${PN}-camera"
SYSTEMD_SERVICE:${PN} = "edgekd-install.service edgekd-renew.timer"
SYSTEMD_SERVICE:${PN}-camera = "camera.service"

do_install() {
    install -d ${D}${nonarch_libdir}/edgekd ${D}${systemd_system_unitdir} ${D}${sysconfdir}/edgekd
    install -m 0644 ${S}/agent.pyz ${S}/install_image.sh ${S}/commit_when_healthy.py ${S}/camera_service.py \
        ${D}${nonarch_libdir}/edgekd/
    install -m 0644 ${S}/*.service ${S}/*.timer ${D}${systemd_system_unitdir}/
    install -m 0644 ${S}/install.conf ${D}${sysconfdir}/edgekd/
}

FILES:${PN} = " \
    ${nonarch_libdir}/edgekd/agent.pyz \
    ${nonarch_libdir}/edgekd/install_image.sh \
    ${nonarch_libdir}/edgekd/commit_when_healthy.py \
    ${systemd_system_unitdir}/edgekd-*.service \
    ${systemd_system_unitdir}/edgekd-renew.timer \
    ${sysconfdir}/edgekd/install.conf \
"
FILES:${PN}-camera = "${nonarch_libdir}/edgekd/camera_service.py ${systemd_system_unitdir}/camera.service"
CONFFILES:${PN} = "${sysconfdir}/edgekd/install.conf"

# Packages of the modules that the agent imports; python3-modules contains all of them.
RDEPENDS:${PN} = " \
    python3-core \
    python3-asyncio \
    python3-crypt \
    python3-ctypes \
    python3-datetime \
    python3-difflib \
    python3-fcntl \
    python3-io \
    python3-json \
    python3-mmap \
    python3-netclient \
    python3-numpy \
    python3-statistics \
    python3-threading \
    util-linux-runuser \
"
RDEPENDS:${PN}-camera = "${PN} python3-opencv"
